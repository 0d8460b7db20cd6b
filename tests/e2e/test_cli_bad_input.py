"""Bad input: one clear error, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_support import SMALL, Cli


def _file(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def _rows(name: str, *changes: dict[str, str | None]) -> str:
    rows = []
    for change in changes:
        row: dict[str, str | None] = {
            "instruction": "Please answer the following question with true or false, question: is it?\n\n"
            "Answer format: true/false",
            "input": "",
            "output": "the correct answer is true",
            "answer": "true",
        }
        row.update(change)
        rows.append({key: value for key, value in row.items() if value is not None})
    return _file(name, json.dumps(rows))


CASES = {
    "missing data file": (lambda: ["--data", "no.json"], ["no.json"]),
    "empty file": (lambda: ["--data", _file("empty.json", "")], ["empty.json", "empty"]),
    "malformed JSON": (lambda: ["--data", _file("bad.json", '[\n {"a": }]')], ["line 2", "column"]),
    "malformed JSONL": (lambda: ["--data", _file("bad.jsonl", '{"a": 1\n')], ["line 1"]),
    "row without answer": (lambda: ["--data", _rows("r.json", {}, {"answer": None})], ["row 2", "answer"]),
    "answer outside the candidates": (
        lambda: [
            "--data",
            _rows("r.json", {}, {}, {"answer": "maybe", "output": "the correct answer is maybe"}),
        ],
        ["row 3", "maybe"],
    ),
    "unknown task": (lambda: ["--task", "bolq"], ["bolq", "did you mean boolq"]),
    "nothing to train on": (lambda: [], ["--task", "--data"]),
    "file for two tasks": (
        lambda: ["--task", "boolq", "winogrande", "--data", _rows("r.json", {})],
        ["one data file can only be for one task"],
    ),
    "the mix from one file": (
        lambda: ["--task", "commonsense-mix", "--data", _rows("r.json", {})],
        ["read from a folder", "r.json"],
    ),
    "the mix from a folder that lacks tasks": (
        lambda: ["--task", "commonsense-mix", "--data", "."],
        ["no rows of BoolQ", "boolq.jsonl"],
    ),
    "misspelt mix": (lambda: ["--task", "commonsense-mx"], ["did you mean commonsense-mix"]),
    "rank 0": (lambda: ["--task", "sample-boolq", "--rank", "0"], ["rank", "greater than 0"]),
    "negative rank": (lambda: ["--task", "sample-boolq", "--rank", "-4"], ["rank"]),
    "unknown flag": (lambda: ["--task", "sample-boolq", "--rnak", "4"], ["--rnak", "--rank"]),
    "targets that match nothing": (
        lambda: ["--task", "sample-boolq", "--targets", "q_prog", "--warmup-steps", "0"],
        ["q_prog", "did you mean q_proj"],
    ),
    **{
        f"a target that is {what}": (
            lambda names=names: ["--task", "sample-boolq", "--targets", *names, "--warmup-steps", "0"],
            ["--targets", got, expected],
        )
        for what, names, got, expected in (
            (
                "a norm",
                ["q_proj", "input_layernorm"],
                "input_layernorm (LlamaRMSNorm)",
                "linear layers",
            ),
            ("an MLP", ["mlp", "q_proj"], "got: mlp (LlamaMLP)\n", "linear layers"),
            ("an attention block", ["self_attn"], "self_attn (LlamaAttention)", "linear layers"),
            ("a list of layers", ["layers"], "layers (ModuleList)", "linear layers"),
            ("the head", ["q_proj", "lm_head"], "lm_head", "the head cannot have an adapter"),
            ("nothing", [], "no name", "there is no layer to adapt"),
        )
    },
    "warm-up longer than the run": (
        lambda: ["--task", "sample-boolq", "--rows", "16", "--warmup-steps", "2"],
        ["2 warm-up steps of 2"],
    ),
    "uneven batch": (
        lambda: ["--task", "sample-boolq", "--micro-batch-size", "3"],
        ["cannot be divided evenly"],
    ),
    "unknown preset": (lambda: ["--task", "sample-boolq", "--preset", "dmeo"], ["did you mean demo"]),
    "unknown key in a preset": (
        lambda: ["--preset", _file("p.yaml", "learning_rat: 1.0e-3\n")],
        ["p.yaml", "learning_rat", "did you mean 'learning_rate'"],
    ),
    "text where a number belongs": (
        lambda: ["--preset", _file("p.yaml", "learning_rate: fast\n")],
        ["learning_rate", "fast"],
    ),
    "malformed preset": (lambda: ["--preset", _file("p.yaml", "a: [1\n")], ["p.yaml", "line"]),
}


@pytest.mark.parametrize("case", CASES)
def test_train_refuses(cli: Cli, tiny_model: Path, case: str) -> None:
    make, expected = CASES[case]
    outcome = cli("train", "--model", tiny_model, *SMALL, *make(), "--output", "run")
    assert outcome.code == 2, outcome.err
    for words in expected:
        assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert not Path("run").exists()


TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")

MODELS = {
    "missing folder": (lambda tiny: "./nowhere", "no such model folder"),
    "misspelt built-in name": (lambda tiny: "smollm2-135n", "did you mean smollm2-135m"),
    "hub id out of reach": (lambda tiny: "no-such-team/no-such-model", "no such model"),
    "missing GGUF": (lambda tiny: "no.gguf", "no such model file"),
    "broken GGUF": (lambda tiny: _file("broken.gguf", "not a model"), "cannot be read"),
    "folder without config": (lambda tiny: _folder(), "no config.json"),
    "folder without weights": (
        lambda tiny: _folder(_config(tiny)),
        "no weights",
    ),
    "unpicklable weights only": (
        lambda tiny: _folder(_config(tiny), ("pytorch_model.bin", "x")),
        "pickled",
    ),
    "broken weights": (
        lambda tiny: _folder(
            *((name, (tiny / name).read_text()) for name in TEXT_FILES),
            ("model.safetensors", "x"),
        ),
        "download the file again",
    ),
    "adapter instead of model": (lambda tiny: _folder(("adapter_config.json", "{}")), "holds an adapter"),
}


def _config(tiny: Path) -> tuple[str, str]:
    return "config.json", (tiny / "config.json").read_text()


def _folder(*files: tuple[str, str]) -> str:
    Path("model").mkdir()
    for name, text in files:
        _file(f"model/{name}", text)
    return "./model"


@pytest.mark.parametrize("case", MODELS)
def test_model_is_refused(cli: Cli, tiny_model: Path, case: str) -> None:
    make, expected = MODELS[case]
    outcome = cli("train", "--model", make(tiny_model), "--task", "sample-boolq", *SMALL, "--output", "run")
    assert outcome.code == 2, outcome.err
    assert expected in outcome.err and "Traceback" not in outcome.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--model", "model", *SMALL, "--rows", "16", "--task", "sample-boolq"],
        ["eval", "model", "--task", "sample-boolq"],
        ["eval", "model", "--task", "sample-boolq", "--protocol", "generate"],
        ["eval", "model", "--task", "ours.yaml", "--harness", "lm-eval"],
    ],
)
def test_a_tokenizer_with_more_ids_than_embeddings(cli: Cli, tiny_model: Path, command: list[str]) -> None:
    """Refused before any row, though none has such an id."""
    from transformers import AutoTokenizer

    if "lm-eval" in command:
        pytest.importorskip("lm_eval")
        _file("rows.jsonl", json.dumps({"question": "is it?", "answer": 0}) + "\n")
        _file(
            "ours.yaml",
            "task: ours\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
            "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\n"
            "doc_to_target: answer\ndoc_to_choice: ['yes', 'no']\nmetric_list: [{metric: acc}]\n",
        )
    shutil.copytree(tiny_model, "model")
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.add_tokens(["<never in a row>"])
    tokenizer.save_pretrained("model")
    outcome = cli(*command, "--output", "out")
    assert outcome.code == 2, outcome.err
    assert "more ids than the model's embedding has rows" in outcome.err and "Traceback" not in outcome.err
    assert not Path("out").exists()


OUTPUTS = {
    "run": "the output is a file",
    "run/below": "the output is a file",
    "nowhere": "a link that leads nowhere",
    "n" * 300: "name is too long",
    "a\nb": "a control character",
}
VERBS = [
    *("train", "train --overwrite", "train --resume", "eval", "report", "analyze", "bench op", "study"),
    *("compare", "compare --overwrite", "compare --resume"),
]


@pytest.mark.parametrize("output", OUTPUTS, ids=["file", "below a file", "link", "long", "newline"])
@pytest.mark.parametrize("verb", VERBS)
def test_output_that_cannot_be_written(cli: Cli, tiny_model: Path, verb: str, output: str) -> None:
    """Nothing is computed whose results could not be written."""
    _file("run", "precious")
    Path("nowhere").symlink_to("gone")
    name, *flags = verb.split()
    training: list[object] = ["--model", tiny_model, "--task", "sample-boolq", *SMALL]
    rest: dict[str, list[object]] = {
        "train": training,
        "compare": training,
        "study": ["smollm2-four-tasks"],
        "eval": [tiny_model, "--task", "sample-boolq"],
        "report": ["a-run"],
        "analyze": ["a-run"],
        "bench": ["--set", "cpu"],
    }
    outcome = cli(name, *flags, *rest[name], "--output", output)
    said = OUTPUTS[output]
    if name == "bench":
        said = {"run": "output file exists", "nowhere": "a link that leads nowhere"}.get(output, said)
    assert outcome.code == 2 and said in outcome.err and "right" not in outcome.err, outcome.err
    assert "Traceback" not in outcome.err and Path("run").read_text() == "precious"
    assert sorted(one.name for one in Path().iterdir()) == ["nowhere", "run"]


def test_analyze_of_nothing(cli: Cli) -> None:
    outcome = cli("analyze", "--output", "out")
    assert outcome.code == 2 and "nothing to analyse" in outcome.err and not Path("out").exists()


def test_eval_refuses(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("eval", tiny_model, "--task", "hellaswagg", "--output", "out")
    assert outcome.code == 2 and "did you mean hellaswag" in outcome.err
    generate = ["--format", "continuation", "--protocol", "generate"]
    outcome = cli("eval", tiny_model, "--task", "sample-boolq", *generate, "--output", "out")
    assert outcome.code == 2 and "--format instruct" in outcome.err
    assert not Path("out").exists()


def test_an_unreachable_hub_gives_no_traceback(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("eval", tiny_model, "--task", "boolq", "--output", "out")
    assert outcome.code == 1 and "--data" in outcome.err and "Traceback" not in outcome.err


def test_unknown_verb(cli: Cli) -> None:
    outcome = cli("evall", "x")
    assert outcome.code == 2 and "did you mean doratune eval" in outcome.err
