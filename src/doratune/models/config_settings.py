"""The settings of a model's configuration that can change what it computes, to tell two base models apart.

All settings count except those in ``WITHOUT_EFFECT`` and those that no code reads. A list of the settings
that matter would have to be kept for every architecture, and its gaps would pass silently.
"""

from __future__ import annotations

import math
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    cache_utils,
    masking_utils,
    modeling_layers,
    modeling_rope_utils,
    modeling_utils,
)

from doratune.models._internals import setting_names
from doratune.records.run import ConfigRecord

WITHOUT_EFFECT = frozenset(
    {
        # the model's origin and the software that wrote it
        *("_name_or_path", "name_or_path", "transformers_version", "architectures", "auto_map"),
        # how weights are stored and loaded: the weights have a fingerprint
        *("dtype", "torch_dtype", "quantization_config"),
        # further outputs of a call, its cache, and ways to save memory
        *("output_attentions", "output_hidden_states", "return_dict", "use_cache"),
        *("chunk_size_feed_forward", "gradient_checkpointing"),
        # how weights missing from the files are initialised: such models are refused
        *("initializer_range", "initializer_factor"),
        # of classification heads, which a causal LM does not have
        *("id2label", "label2id", "num_labels", "problem_type"),
        # the tokenizer's ids, which are compared separately; padding is masked
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
        # read only to make layer_types
        "max_window_layers",
    }
)
"""Settings that change no scored number and no training."""
SHARED_CODE = (modeling_utils, modeling_layers, modeling_rope_utils, masking_utils, cache_utils)
"""The code that transformers' models share."""


def config_record(model: PreTrainedModel) -> ConfigRecord:
    """The settings of a model's configuration that can change what it computes.

    transformers has filled them in, so a setting left out equals its default. Numbers are rounded to float32,
    as a GGUF file has them.

    Args:
        model: The loaded model, or one on the meta device.
    """
    config = model.config.get_text_config()
    return ConfigRecord(
        transformers=transformers.__version__,
        settings={
            key: _canonical(value)
            for key, value in sorted(config.to_dict().items())
            if key not in WITHOUT_EFFECT and _has_reader(key, value, config, model)
        },
    )


def _has_reader(key: str, value: Any, config: PretrainedConfig, model: PreTrainedModel) -> bool:
    """Whether any code may read a setting; files have many that the configuration's class does not know."""
    is_custom_code = not type(config).__module__.startswith("transformers.")
    if is_custom_code or key == "model_type" or key in setting_names(type(config)):
        return True
    modules = (sys.modules[type(model).__module__], *SHARED_CODE)
    return value is not None and any(key in _words(str(module.__file__)) for module in modules)


@cache
def _words(file: str) -> frozenset[str]:
    """The words in a Python file that can be attributes or strings."""
    return frozenset(re.findall(r"""[."'](\w+)""", Path(file).read_text(encoding="utf-8")))


def _canonical(value: Any) -> Any:
    """A value as in JSON: 10000.0 is 10000, a tuple is a list, and float64 is rounded to float32."""
    if isinstance(value, dict):
        return {
            str(key): _canonical(one) for key, one in sorted(value.items(), key=lambda item: str(item[0]))
        }
    if isinstance(value, list | tuple):
        return [_canonical(one) for one in value]
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            rounded = float(str(np.float32(value)))
        if not math.isfinite(rounded):
            return str(rounded)
        return int(rounded) if rounded.is_integer() else rounded
    return value if isinstance(value, bool | int | str | None) else str(value)
