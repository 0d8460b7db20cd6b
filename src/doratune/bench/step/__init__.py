"""Time and memory of an optimizer step: ``doratune bench step``.

Each case in ``cases.yaml`` runs in the training loops of ``loops``, in processes that take turns (``turns``)
and whose losses are compared (``gate``).
"""
