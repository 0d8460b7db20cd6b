"""Measures how much memory ``doratune merge`` takes, compared with the largest shard and the largest layer.

    python benchmarks/merge_memory.py merge-memory.json

The base has random weights in several shards of bfloat16; the adapter is DoRA on all linear layers and the
embedding. Each merge is a separate process, whose peak is counted above what it holds after the merge of a
tiny model. The largest layer is counted in float32, in which it is merged. The check of the result reads a
block at a time, as for a model that does not fit in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doratune.records.serving import MergeRecord

CASES = {
    "wide": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 6, "vocab_size": 8000},
    "deep": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 20, "vocab_size": 32000},
}
SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 200}
SHARD = "150MB"
BOUND = 1.3


def build(folder: Path, sizes: dict[str, int]) -> None:
    """Write a random base model and an adapter, in a process that then ends."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=16, num_key_value_heads=8)).bfloat16()
    model.save_pretrained(folder / "base", max_shard_size=SHARD)
    letters = {letter: index for index, letter in enumerate(["<unk>", "</s>", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.BPE(letters, [], unk_token="<unk>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(folder / "base")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"]
    settings = LoraConfig(r=16, use_dora=True, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)


def measure(folder: Path) -> None:
    """Merge, and print what it took as JSON."""
    import torch

    from doratune.memory import resident_bytes
    from doratune.models.weights import WeightFiles
    from doratune.serving import check
    from doratune.serving.merging import merge
    from doratune.serving.merging.config import MergeConfig

    written = {}
    write_settings = merge.write_settings

    def written_now(*arguments: Any, **settings: Any) -> None:
        written["bytes"] = resident_bytes("VmHWM")
        write_settings(*arguments, **settings)

    def run(place: Path) -> MergeRecord:
        adapter, base, output = (str(place / part) for part in ("adapter", "base", "merged"))
        return merge.merge(MergeConfig(run=[adapter], output=Path(output), base=base))

    merge.write_settings = written_now
    check.available_memory_bytes = lambda: 0
    run(folder / "small")  # imports all that a merge imports
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    held = resident_bytes("VmHWM")
    record = run(folder)
    assert record.usable
    tensors = WeightFiles(folder / "base").tensors.values()
    result = {
        "base_bytes": sum(record.files.values()),
        "shards": len(record.files),
        "largest_shard_bytes": max(record.files.values()),
        "largest_layer_bytes": 4 * max(torch.Size(one.shape).numel() for one in tensors),
        "held_bytes": held,
        "writing_bytes": written["bytes"] - held,
        "whole_bytes": resident_bytes("VmHWM") - held,
        "seconds": record.seconds,
    }
    print(json.dumps(result))


def main() -> None:
    from doratune.environment import describe_environment
    from doratune.records.files import write_json_atomic

    results = []
    for name, sizes in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            for step in ("build", "measure"):
                command = [sys.executable, __file__, step, scratch, json.dumps(sizes)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = {"name": name, **sizes, **json.loads(done.stdout.splitlines()[-1])}
        allowed = result["largest_shard_bytes"] + result["largest_layer_bytes"]
        result |= {f"{part}_ratio": result[f"{part}_bytes"] / allowed for part in ("writing", "whole")}
        results.append(result)
        writing, whole = result["writing_ratio"], result["whole_ratio"]
        print(f"{name}: {writing:.2f} of largest shard and layer while writing, {whole:.2f} with the check")
    record = {"results": results, "bound": BOUND, "environment": describe_environment().to_dict()}
    write_json_atomic(Path(sys.argv[1]), record)
    if any(one["whole_ratio"] > BOUND for one in results):
        sys.exit(f"more than {BOUND} times the largest shard and the largest layer")


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]) / "small", SMALL)
        build(Path(sys.argv[2]), json.loads(sys.argv[3]))
    elif sys.argv[1] == "measure":
        measure(Path(sys.argv[2]))
    else:
        main()
