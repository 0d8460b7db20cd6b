"""``doratune eval --harness lm-eval``: lm-eval's own results, and our scores held to its scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_support import SMALL, Cli, lines, logging_kept

from doratune.data.examples import Example, build_examples
from doratune.data.samples import SAMPLE_TASKS
from doratune.data.source import load_split
from doratune.data.tasks import get_task
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import find_trained
from doratune.evaluation.likelihood import CandidateScores, score_candidates
from doratune.evaluation.target import load_target

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'doratune[lm-eval]'")
pytestmark = pytest.mark.slow  # half a minute together, a good part of it in imports

ROWS = 24
METRICS = ("acc", "acc_norm", "acc_bytes")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DoRA run on a random model whose weights are large, so that every token sways the ones after it."""
    import torch
    from transformers import AutoModelForCausalLM

    from doratune.cli.main import main

    folder = tmp_path_factory.mktemp("harness")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(12 if weight.ndim > 1 else 1)
    shutil.copytree(tiny_model, folder / "model")
    model.save_pretrained(folder / "model")
    flags = ["--model", str(folder / "model"), "--task", "sample-boolq", "--rows", "32", *SMALL]
    with logging_kept():
        assert main(["train", *flags, "--learning-rate", "1e-2", "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def examples_of(name: str, rows: int = ROWS) -> list[Example]:
    """The first test rows of a sample task, in the continuation format."""
    loaded = load_split(get_task(name), "test")
    return build_examples(loaded.rows[:rows], source=name, fmt="continuation", task=get_task(name))


def cut_as_lm_eval_does(examples: list[Example]) -> list[Example]:
    """The same texts, with the prompt's last line break given to the answers."""
    return [
        replace(
            one,
            prompt=one.prompt.removesuffix("\n"),
            candidates=tuple(f"\n{text}" for text in one.candidates),
        )
        for one in examples
    ]


def write_task(name: str, examples: Sequence[Example], **settings: Any) -> str:
    """An lm-eval task of these rows, and the name of its YAML file."""
    rows = [{"prompt": one.prompt, "choices": one.candidates, "gold": one.gold} for one in examples]
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(Path(f"{name}.jsonl").resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": metric, "aggregation": "mean"} for metric in METRICS],
        **settings,
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(task))
    return f"{name}.yaml"


def results_of(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "lm-eval" / name / "results.json").read_text())


def samples_of(run: Path, name: str, *, group: str | None = None) -> list[dict[str, Any]]:
    samples = lines(run / "lm-eval" / (group or name) / f"samples_{name}.jsonl")
    assert [one["doc_id"] for one in samples] == list(range(len(samples)))
    return samples


def log_likelihoods(sample: dict[str, Any]) -> list[float]:
    return [score for score, _ in sample["filtered_resps"]]


def our_scores(target: object, examples: list[Example], dtype: Any = "float32") -> list[CandidateScores]:
    config = EvalConfig(target=str(target), task=[], dtype=dtype)
    loaded = load_target(config, find_trained(config.target))
    return score_candidates(loaded.model, loaded.tokenizer, examples, batch_size=8)


def best(scores: tuple[float, ...]) -> int:
    """The candidate that lm-eval takes: the first of the likeliest."""
    return scores.index(max(scores))


def check_equal(ours: list[CandidateScores], samples: list[dict[str, Any]], examples: list[Example]) -> None:
    """Every candidate's log-likelihood, and what each row is counted as."""
    for score, sample, one in zip(ours, samples, examples, strict=True):
        assert score.raw == pytest.approx(log_likelihoods(sample), rel=1e-5, abs=1e-4)
        assert sample["acc"] == float(best(score.raw) == one.gold)
        assert sample["acc_bytes"] == float(best(score.normalised) == one.gold)
        if all(text.isascii() for text in one.candidates):
            assert sample["acc_norm"] == sample["acc_bytes"]


def test_scores_are_lm_eval_s_row_by_row(cli: Cli, run: Path) -> None:
    rows = {name: cut_as_lm_eval_does(examples_of(name)) for name in SAMPLE_TASKS}
    files = [write_task(name, examples) for name, examples in rows.items()]
    outcome = cli("eval", run, "--harness", "lm-eval", "--task", *files)
    assert outcome.code == 0, outcome.err
    spread = 0.0
    for name, examples in rows.items():
        ours, samples = our_scores(run, examples), samples_of(run, name)
        check_equal(ours, samples, examples)
        means = {metric: sum(sample[metric] for sample in samples) / ROWS for metric in METRICS}
        found = results_of(run, name)["results"][name]
        assert {metric: found[f"{metric},none"] for metric in METRICS} == pytest.approx(means)
        assert f"|{name}" in outcome.out and f"|{round(means['acc'], 4)}" in outcome.out
        first = [score.raw[0] for score in ours]
        spread = max(spread, max(first) - min(first))
    assert spread > 1  # what stands before an answer matters to this model by far more than the tolerance


def test_on_the_built_in_model(cli: Cli) -> None:
    examples = cut_as_lm_eval_does(examples_of("sample-hellaswag", 2))
    flags = ["--harness", "lm-eval", "--dtype", "float32", "--output", "out"]
    outcome = cli("eval", "smollm2-135m", *flags, "--task", write_task("endings", examples))
    assert outcome.code == 0, outcome.err
    check_equal(our_scores("smollm2-135m", examples), samples_of(Path("out"), "endings"), examples)
    assert results_of(Path("out"), "endings")["doratune"]["method"] == "base"


def test_our_prompts_differ_by_the_line_break_only(cli: Cli, run: Path) -> None:
    """lm-eval moves space from the prompt's end to the answers: a token more, the same for all of a row's."""
    examples = examples_of("sample-hellaswag")
    task = write_task("endings", examples)
    assert cli("eval", run, "--harness", "lm-eval", "--task", task).code == 0
    breaks = [replace(one, candidates=("\n",)) for one in cut_as_lm_eval_does(examples)]
    ours = zip(our_scores(run, examples), our_scores(run, breaks), strict=True)
    samples = samples_of(run, "endings")
    for (score, line_break), sample, one in zip(ours, samples, examples, strict=True):
        wanted = [line_break.raw[0] + raw for raw in score.raw]
        assert log_likelihoods(sample) == pytest.approx(wanted, rel=1e-5, abs=1e-4)
        assert sample["acc"] == float(best(score.raw) == one.gold)
    flags = ["--task", "sample-hellaswag", "--format", "continuation", "--eval-rows", ROWS]
    assert cli("eval", run, *flags).code == 0
    (evaluation,) = json.loads((run / "record.json").read_text())["evaluations"]
    assert evaluation["accuracy_raw"] == pytest.approx(
        results_of(run, "endings")["results"]["endings"]["acc,none"]
    )


def test_ours_is_normalised_by_bytes_and_acc_norm_by_characters(cli: Cli, run: Path) -> None:
    # Two bytes a letter, and a token for each byte, against plain letters.
    words = ("éÿ", "zq", "ÿé", "qz")
    examples = [Example(i, "", f"Word {i} is:", words, words, 0) for i in range(20)]
    ours = our_scores(run, examples)
    examples = [replace(one, gold=best(score.normalised)) for one, score in zip(examples, ours, strict=True)]
    assert cli("eval", run, "--harness", "lm-eval", "--task", write_task("words", examples)).code == 0
    check_equal(ours, samples_of(run, "words"), examples)
    found = results_of(run, "words")["results"]["words"]
    assert found["acc_bytes,none"] == 1 and found["acc_norm,none"] < 1


def test_an_adapter_that_is_not_merged(cli: Cli, run: Path) -> None:
    examples = cut_as_lm_eval_does(examples_of("sample-winogrande", 8))
    flags = ["--harness", "lm-eval", "--dtype", "bfloat16", "--task", write_task("options", examples)]
    outcome = cli("eval", run, *flags)
    assert outcome.code == 0 and "kept apart from the base" in outcome.err
    model = json.loads((run / "record.json").read_text())["model"]["name"]
    found = [log_likelihoods(sample) for sample in samples_of(run, "options")]

    def largest_distance(target: object) -> float:
        scores = our_scores(target, examples)
        pairs = zip(found, scores, strict=True)
        return max(abs(a - b) for row, score in pairs for a, b in zip(row, score.raw, strict=True))

    # bfloat16 keeps 8 bits; what the adapter learnt moves the scores by more.
    assert 0 < largest_distance(run) < largest_distance(model) / 3
    assert any(score % 2**-7 for row in found for score in row)  # the sums themselves are not rounded to it


def test_logits_are_float32_whatever_the_type_of_the_model(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    seen: set[str] = set()
    call: Any = vars(HFLM)["_model_call"]

    def looking(self: object, *args: object, **kwargs: object) -> Any:
        logits = call(self, *args, **kwargs)
        seen.add(str(logits.dtype))
        return logits

    monkeypatch.setattr(HFLM, "_model_call", looking)
    examples = cut_as_lm_eval_does(examples_of("sample-winogrande", 4))
    flags = ["--harness", "lm-eval", "--dtype", "bfloat16", "--task", write_task("options", examples)]
    assert cli("eval", run, *flags).code == 0
    assert seen == {"torch.float32"}
    scored = results_of(run, "options")["doratune"]["scored"]
    assert (scored["weights"], scored["merged"], scored["dtype"]) == ("adapter", False, "bfloat16")


@pytest.mark.parametrize("way", ["likelihood", "generate", "lm-eval"])
def test_activations_that_overflow_are_an_error_in_every_protocol(
    cli: Cli, tiny_model: Path, tmp_path: Path, way: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for layer in model.model.layers:  # finite themselves
            layer.mlp.gate_proj.weight.mul_(1e25)
            layer.mlp.up_proj.weight.mul_(1e25)
    shutil.copytree(tiny_model, "large")
    model.save_pretrained("large")
    task = write_task("endings", cut_as_lm_eval_does(examples_of("sample-hellaswag", 4)))
    harness = ["--harness", "lm-eval", "--task", task]
    ours = ["--task", "sample-boolq", "--eval-rows", 4, "--protocol", way]
    outcome = cli("eval", "large", *(harness if way == "lm-eval" else ours), "--output", "out")
    assert outcome.code == 1
    assert "weights or activations are not finite" in outcome.err and "mask" not in outcome.err
    assert ("row " in outcome.err) == (way != "lm-eval")
    assert not list(Path("out").rglob("*.json*"))


def test_what_is_written_and_when_it_is_refused(cli: Cli, run: Path) -> None:
    task = write_task("endings", cut_as_lm_eval_does(examples_of("sample-hellaswag")))
    record = (run / "record.json").read_text()
    outcome = cli("eval", run, "--harness", "lm-eval", "--task", task, "--eval-rows", 5, "--json")
    assert outcome.code == 0, outcome.err
    found = results_of(run, "endings")
    assert json.loads(outcome.out) == {"endings": found} and "samples" not in found
    assert found["n-samples"]["endings"] == {"original": ROWS, "effective": 5}
    assert found["doratune"]["method"] == "dora" and found["doratune"]["target"] == str(run)
    assert len(samples_of(run, "endings")) == 5
    again = cli("eval", run, "--harness", "lm-eval", "--task", task)
    assert again.code == 2 and "already exist" in again.err and "--overwrite" in again.err
    assert results_of(run, "endings") == found
    assert cli("eval", run, "--harness", "lm-eval", "--task", task, "--overwrite").code == 0
    assert len(samples_of(run, "endings")) == ROWS
    assert cli("eval", run, "--harness", "lm-eval", "--task", task, "--output", "other").code == 0
    assert results_of(Path("other"), "endings")["results"] == results_of(run, "endings")["results"]
    assert (run / "record.json").read_text() == record  # lm-eval's figures are none of ours


def test_a_group(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    examples = cut_as_lm_eval_does(examples_of("sample-boolq"))
    write_task("first", examples[:4])
    write_task("second", examples[4:16])
    mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    group = {"group": "both", "task": ["first", "second"], "aggregate_metric_list": [mean]}
    Path("both.yaml").write_text(yaml.safe_dump(group))
    manager = TaskManager(include_path=".", include_defaults=False)
    monkeypatch.setattr("doratune.evaluation.harness._manager", lambda: manager)
    outcome = cli("eval", run, "--harness", "lm-eval", "--task", "both")
    assert outcome.code == 0, outcome.err
    assert [path.name for path in (run / "lm-eval").iterdir()] == ["both"]
    found = results_of(run, "both")
    means = [found["results"][name]["acc,none"] for name in ("first", "second")]
    assert found["groups"]["both"]["acc,none"] == pytest.approx((4 * means[0] + 12 * means[1]) / 16)
    assert len(samples_of(run, "second", group="both")) == 12
    assert "|both" in outcome.out and "Groups" in outcome.out


@pytest.mark.parametrize(
    "flags",
    [["--protocol", "likelihood"], ["--format", "continuation"], ["--data", "rows.json"]],
    ids=" ".join,
)
def test_flags_without_a_meaning_are_refused(cli: Cli, run: Path, flags: list[str]) -> None:
    outcome = cli("eval", run, "--harness", "lm-eval", "--task", "arc_easy", *flags)
    assert outcome.code == 2 and f"leave out {flags[0]}" in outcome.err


def test_tasks_that_cannot_be_run(cli: Cli, run: Path) -> None:
    def refused(*tasks: str) -> str:
        outcome = cli("eval", run, "--harness", "lm-eval", "--task", *tasks)
        assert outcome.code == 2 and "Traceback" not in outcome.err
        return outcome.err

    assert "did you mean hellaswag" in refused("hellaswagg")
    assert "code that the model writes" in refused(
        write_task("unsafe", examples_of("sample-boolq", 2), unsafe_code=True)
    )
    assert "absent.jsonl" in refused(
        write_task("rowless", [], dataset_kwargs={"data_files": {"test": "absent.jsonl"}})
    )
    Path("again").mkdir()
    shutil.copy(write_task("twice", examples_of("sample-boolq", 2)), "again/twice.yaml")
    assert "two files" in refused("twice.yaml", "again/twice.yaml")
    Path("broken.yaml").write_text("task: [")
    assert "broken.yaml" in refused("broken.yaml")
    offline = cli("eval", run, "--harness", "lm-eval", "--task", "arc_easy")
    assert offline.code == 1 and "arc_easy" in offline.err and "Traceback" not in offline.err
    assert not (run / "lm-eval").exists()


def test_without_lm_eval(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doratune.evaluation.harness.find_spec", lambda name: None)
    outcome = cli("eval", run, "--harness", "lm-eval", "--task", "arc_easy")
    assert outcome.code == 2 and "pip install 'doratune[lm-eval]'" in outcome.err


def test_an_adapter_s_norms_are_held_from_request_to_request(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the adapter is not merged, and lm-eval calls the model once a batch."""
    from lm_eval.models.huggingface import HFLM

    from doratune.peft.layer import EngineLayer

    held: list[list[bool]] = []
    call = HFLM._model_call

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        layers = [module for module in self.model.modules() if isinstance(module, EngineLayer)]
        held.append([layer.norms.held for layer in layers])
        return call(self, *args, **kwargs)

    monkeypatch.setattr(HFLM, "_model_call", watched)
    task = write_task("sample-boolq", cut_as_lm_eval_does(examples_of("sample-boolq")))
    outcome = cli(
        "eval", run, "--harness", "lm-eval", "--dtype", "bfloat16", "--eval-batch-size", 8, "--task", task
    )
    assert outcome.code == 0, outcome.err
    assert len(held) > 1 and all(layers and all(layers) for layers in held)
    assert isinstance(results_of(run, "sample-boolq")["doratune"]["speedups"], list)
