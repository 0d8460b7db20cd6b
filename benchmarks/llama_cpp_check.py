"""Has llama.cpp itself read what ``doratune export`` writes, and compares its answers with transformers'.

    python benchmarks/llama_cpp_check.py RUN ROWS.json RECORD.json --llama-python VENV/bin/python

RUN is a run on ``smollm2-135m``; ROWS are rows with an instruction and an output, such as a task's test rows.
``--llama-python`` is a Python that has ``llama-cpp-python``, which pip builds from source in ten minutes or
more:

    python -m venv VENV && VENV/bin/pip install llama-cpp-python

The built-in base is a GGUF file in Q4_1. For the comparison in float32, llama.cpp first turns it into one in
F32, because it rounds activations too where it multiplies them by quantised weights. Then the run is exported
twice: onto that file, and onto the original with ``--requantize Q8_0``. transformers computes base plus
adapter with PEFT's own code, unmerged and merged. Compared are greedy texts after ten prompts, token ids, and
the perplexity of 50 rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPTS, ROWS = 10, 50
NEW_TOKENS, LONGEST = 32, 512
LIMIT = 0.005
"""Largest difference of perplexity in float32, relative."""
MODEL = "smollm2-135m"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("rows", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("--llama-python", required=True)
    told = parser.parse_args()

    from doratune.environment import describe_environment
    from doratune.models.builtin import builtin_gguf
    from doratune.records.files import write_json_atomic

    rows = json.loads(told.rows.read_text(encoding="utf-8"))[:ROWS]
    asked = {
        "prompts": [row["instruction"] for row in rows[:PROMPTS]],
        "texts": [f"{row['instruction']}\n{row['output']}" for row in rows],
    }
    with tempfile.TemporaryDirectory() as scratch, builtin_gguf(MODEL) as (original, _):
        base, exact, small = (Path(scratch) / f"{name}.gguf" for name in ("base-F32", "F32", "Q8_0"))
        version = _llama(told.llama_python, {"widen": str(original), "to": str(base)})
        exported = [
            _export(told.run, exact, "--base-gguf", str(base)),
            _export(told.run, small, "--requantize", "Q8_0"),
        ]
        answers = _of_transformers(told.run, asked)
        for name, file in {"base": base, "F32": exact, "Q8_0": small}.items():
            answers[f"llama.cpp {name}"] = _llama(told.llama_python, {"file": str(file), **asked})
    compared = {
        name: _compare(answers[one], answers[other])
        for name, one, other in [
            ("base: transformers, llama.cpp in F32", "base", "llama.cpp base"),
            ("adapter: unmerged, merged in transformers", "unmerged", "merged"),
            ("adapter: unmerged in transformers, llama.cpp in F32", "unmerged", "llama.cpp F32"),
            ("adapter: unmerged in transformers, llama.cpp in Q8_0", "unmerged", "llama.cpp Q8_0"),
            ("base and adapter in llama.cpp, F32", "llama.cpp base", "llama.cpp F32"),
        ]
    }
    exact_match = compared["adapter: unmerged in transformers, llama.cpp in F32"]
    passed = exact_match["equal_texts"] == PROMPTS and exact_match["perplexity_apart"] <= LIMIT
    record = {
        "passed": passed,
        "perplexity_limit": LIMIT,
        "new_tokens": NEW_TOKENS,
        "compared": compared,
        "perplexity": {name: one["perplexity"] for name, one in answers.items()},
        "exported": exported,
        "llama_cpp_python": version["version"],
        "llama_cpp": version["system"],
        "environment": describe_environment().to_dict(),
    }
    write_json_atomic(told.record, record)
    for name, one in compared.items():
        print(
            f"{name}: {one['equal_texts']} of {PROMPTS} texts equal, {one['equal_tokens']} of {ROWS} rows "
            f"with the same tokens, perplexity {one['perplexity'][0]:.4f} and {one['perplexity'][1]:.4f} "
            f"({one['perplexity_apart']:.3%} apart)"
        )
    return 0 if passed else 1


def _export(run: str, output: Path, *flags: str) -> dict[str, Any]:
    command = ["doratune", "export", run, "--to", "gguf", *flags, "--output", str(output), "--json"]
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=True)
    written = json.loads(done.stdout)
    kept = ("bytes", "base_gguf_sha256", "base_difference", "copied", "computed", "check")
    return {"command": " ".join(Path(part).name for part in command), **{key: written[key] for key in kept}}


def _of_transformers(run: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The answers of the base, and of base plus adapter with PEFT's own code."""
    import torch
    from peft import PeftModel

    from doratune.models.load import load_model

    def answers(model: Any) -> dict[str, Any]:
        texts, tokens, total, count = [], [], 0.0, 0
        for prompt in asked["prompts"]:
            ids = tokenizer(prompt, return_tensors="pt").input_ids[:, :LONGEST]
            new = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS
            )
            texts.append(tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True))
        for text in asked["texts"]:
            ids = torch.tensor([tokenizer(text).input_ids[:LONGEST]])
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            total -= logits.gather(1, ids[0, 1:, None]).sum().item()
            count += len(logits)
            tokens.append(ids[0].tolist())
        return {"texts": texts, "tokens": tokens, "perplexity": float(torch.tensor(total / count).exp())}

    loaded = load_model(MODEL, dtype="float32")
    tokenizer: Any = loaded.tokenizer
    found = {"base": answers(loaded.model)}
    model: Any = PeftModel.from_pretrained(loaded.model, str(Path(run) / "adapter")).eval()
    found["unmerged"] = answers(model)
    found["merged"] = answers(model.merge_and_unload())
    return found


def _compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    first, second = one["perplexity"], other["perplexity"]
    return {
        "equal_texts": sum(a == b for a, b in zip(one["texts"], other["texts"], strict=True)),
        "equal_tokens": sum(a == b for a, b in zip(one["tokens"], other["tokens"], strict=True)),
        "perplexity": [first, second],
        "perplexity_apart": abs(second / first - 1),
    }


def _llama(python: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run ``_in_llama_cpp`` in the other Python."""
    child = [python, __file__, "--in-llama-cpp"]
    done = subprocess.run(child, input=json.dumps(task), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _in_llama_cpp(task: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp answers, or the versions after it wrote a file in F32."""
    import ctypes

    import llama_cpp
    import numpy as np
    from llama_cpp import llama_cpp as bindings

    # On processors with AMX llama.cpp repacks weights into buffers of their own type and then multiplies them
    # with an instruction that some virtual machines refuse; llama_cpp.Llama has no setting for it.
    defaults = bindings.llama_model_default_params()
    defaults.use_extra_bufts = False
    bindings.llama_model_default_params = lambda: defaults

    if "widen" in task:
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype, parameters.allow_requantize, parameters.nthread = 0, True, 1
        failed = llama_cpp.llama_model_quantize(
            task["widen"].encode(), task["to"].encode(), ctypes.byref(parameters)
        )
        assert not failed, failed
        system = llama_cpp.llama_print_system_info().decode()
        return {"version": llama_cpp.__version__, "system": system}
    llm: Any = llama_cpp.Llama(
        task["file"],
        n_ctx=LONGEST + NEW_TOKENS,
        n_batch=LONGEST,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    texts, tokens, total, count = [], [], 0.0, 0
    for prompt in task["prompts"]:
        llm.reset()
        answer = llm.create_completion(
            prompt, max_tokens=NEW_TOKENS, temperature=0.0, top_k=1, repeat_penalty=1.0
        )
        texts.append(answer["choices"][0]["text"])
    for text in task["texts"]:
        ids = llm.tokenize(text.encode(), add_bos=False)[:LONGEST]
        llm.reset()
        llm.eval(ids)
        logits = np.array(llm.scores[: len(ids) - 1], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total -= logits[np.arange(len(ids) - 1), ids[1:]].sum()
        count += len(ids) - 1
        tokens.append(ids)
    return {"texts": texts, "tokens": tokens, "perplexity": float(np.exp(total / count))}


if __name__ == "__main__":
    if sys.argv[1:] == ["--in-llama-cpp"]:
        print(json.dumps(_in_llama_cpp(json.load(sys.stdin))))
    else:
        sys.exit(main())
