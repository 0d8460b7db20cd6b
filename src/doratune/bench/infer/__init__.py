"""``doratune bench infer``: generation with an adapter that is not merged, compared with PEFT's."""
