"""LoRA and DoRA layers as autograd functions, in PyTorch only; ``doratune.functional`` is the public API.

``linear`` is the layer. ``weight_norm`` and ``norm_cache`` compute and reuse its norms, ``magnitude`` and
``output_recovery`` handle the scaling and its gradient, ``matmul`` chooses how this processor multiplies
matrices, and ``triton`` has the GPU kernels. ``lora_update`` and ``magnitude`` serve base layers that are not
plain matrices.
"""
