"""From a name, a folder, a hub id or a GGUF file to a model and its tokenizer."""

from doratune.models.load import LoadedModel, load_model
from doratune.models.precision import DTYPE_CHOICES, resolve_dtype

__all__ = ["DTYPE_CHOICES", "LoadedModel", "load_model", "resolve_dtype"]
