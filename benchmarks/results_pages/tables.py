"""The tables of the pages."""

from __future__ import annotations

from statistics import median
from typing import Any

from doratune.records.bench import BenchRecord, InferBenchRecord, InferCaseResult, Quantity, StepBenchRecord
from doratune.records.run import Environment
from doratune.report.paper import CORRELATION
from pipeline.record import Phase, PipelineBenchRecord
from results_pages import records, words

LAYERS = (
    ("PEFT LoRA", "peft-lora"),
    ("PEFT DoRA", "peft-dora"),
    ("our LoRA", "doratune-lora"),
    ("our DoRA", "doratune-dora"),
    ("new norm", "doratune-dora-new-norm"),
    ("output recomputed", "doratune-dora-let-go"),
)
STEPS = {
    "floor-eager": "frozen model, eager attention",
    "floor-sdpa": "frozen model, fused attention",
    "peft-lora": "stock TRL, PEFT's LoRA",
    "peft-dora": "stock TRL, PEFT's DoRA",
    "doratune-lora": "doratune's LoRA",
    "doratune-dora": "doratune's DoRA",
}
WRITERS = {
    "base": "base model",
    "merged": "merged",
    "peft-lora": "PEFT's LoRA",
    "peft-dora": "PEFT's DoRA",
    "peft-dora-cache": "PEFT's DoRA, cached",
    "doratune-lora": "our LoRA",
    "doratune-dora": "our DoRA",
}
WAYS = {
    "float32": "float32",
    "beside": "bfloat16, adapter kept apart",
    "merged": "bfloat16, merged",
    "merged, one row at a time": "bfloat16, merged, one row at a time",
}
FIGURES = {
    "generate": "training and `generate`, times as fast",
    "likelihood": "training and `likelihood`, times as fast",
    "same_answers": "rows with the same answer",
}
PHASES: tuple[tuple[str, Phase, Phase | None], ...] = (
    ("training", "doratune-train", "reference-train"),
    ("evaluation, `generate`", "doratune-generate", "reference-generate"),
    ("evaluation, `likelihood`", "doratune-likelihood", None),
)
KINDS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "up_proj": "up",
    "down_proj": "down",
}


def source(name: str, environment: Environment, started: object = None, rounds: int | None = None) -> str:
    """Where a table comes from, in one line."""
    parts = [f"`benchmarks/results/{name}.json`", records.machine(environment)]
    if started is not None:
        parts.append(words.day(started))
    if environment.git_commit is not None:
        parts.append(f"commit {environment.git_commit[:7]}")
    parts.append(f"torch {environment.packages['torch'].split('+')[0]}")
    if rounds is not None:
        parts.append(f"{rounds} rounds")
    return f"*Record: {', '.join(parts)}.*"


def bench_source(name: str, record: BenchRecord | StepBenchRecord | InferBenchRecord) -> str:
    """The same for a record of ``doratune bench``."""
    rounds = record.results[0].providers[0].milliseconds.count
    return source(name, record.machine.environment, record.started, rounds)


def layers(record: BenchRecord) -> str:
    """Time of a layer relative to the frozen one, and DoRA relative to PEFT's."""
    quantity: Quantity = "gpu" if record.case_set == "gpu" else "time"
    heading = ["layer", "frozen", *(title for title, _ in LAYERS), "DoRA ÷ PEFT LoRA", "peak ÷ PEFT LoRA"]
    rows = []
    for result in record.results:
        floor = records.provider(result, "floor")
        time = floor.gpu if quantity == "gpu" else floor.milliseconds
        rows.append(
            [
                f"`{result.case.name}`",
                words.milliseconds(time.median),
                *(words.ratio(records.ratio(result, name, "floor", quantity)) for _, name in LAYERS),
                f"**{words.ratio(records.ratio(result, 'doratune-dora', 'peft-lora', quantity))}**",
                words.ratio(records.ratio(result, "doratune-dora", "peft-lora", "peak")),
            ]
        )
    return words.table(heading, rows)


def steps(record: StepBenchRecord, place: int = 0) -> str:
    """Time and memory of a step with every provider."""
    result = record.results[place]
    rows = []
    for one in result.providers:
        ratios = [words.ratio(one.ratios["time"].get(name)) for name in ("floor", "peft-lora", "peft-dora")]
        peak = words.gigabytes(one.peak_bytes)
        cells = [words.milliseconds(one.milliseconds.median), *ratios, peak]
        cells.append(words.ratio(one.ratios["peak"].get("peft-lora")))
        ours = one.provider == "doratune-dora"
        rows.append([STEPS[one.provider], *(f"**{cell}**" if ours else cell for cell in cells)])
    heading = ["", "step", "÷ frozen", "÷ PEFT LoRA", "÷ PEFT DoRA", "peak memory", "peak ÷ PEFT LoRA"]
    return words.table(heading, rows)


def step_summary(names: list[tuple[str, int]]) -> str:
    """DoRA's step on several machines."""
    rows = []
    for name, place in names:
        record = records.step(name)
        result = record.results[place]
        ours = records.provider(result, "doratune-dora")
        case = result.case
        cells = [words.ratio(ours.ratios["time"].get(one)) for one in ("floor", "peft-lora", "peft-dora")]
        cells += [words.ratio(ours.ratios["peak"].get(one)) for one in ("peft-lora", "peft-dora")]
        where = f"{records.machine(record.machine.environment)}, {case.dtype}"
        where += ", checkpointed" if case.gradient_checkpointing else ""
        rows.append([where, words.day(record.started), *cells])
    heading = ["machine", "day", "÷ frozen", "÷ PEFT LoRA", "÷ PEFT DoRA"]
    return words.table([*heading, "peak ÷ PEFT LoRA", "peak ÷ PEFT DoRA"], rows)


def growth(record: StepBenchRecord, headline: StepBenchRecord) -> str:
    """A step against its rows, tokens and rank."""
    rows = []
    for result in growing(record, headline):
        case = result.case
        floor, lora, dora = (
            records.provider(result, name) for name in (result.floor, "doratune-lora", "doratune-dora")
        )
        tokens = case.rows * case.tokens
        rows.append(
            [
                f"{case.rows} × {case.tokens}, rank {case.rank}",
                f"{tokens:,}",
                *(words.milliseconds(one.milliseconds.median) for one in (floor, lora, dora)),
                words.ratio(dora.ratios["time"]["floor"]),
                words.gigabytes(dora.peak_bytes),
            ]
        )
    heading = ["rows × tokens", "tokens", "frozen", "our LoRA", "our DoRA", "DoRA ÷ frozen", "DoRA's peak"]
    return words.table(heading, rows)


def growing(record: StepBenchRecord, headline: StepBenchRecord) -> list[Any]:
    """The cases of a record of growth with that of the headline, by rank and then by tokens."""
    cases = [*record.results, headline.results[0]]
    return sorted(cases, key=lambda one: (one.case.rank, one.case.rows * one.case.tokens, one.case.rows))


def generation(result: InferCaseResult) -> str:
    """Time of a call of ``generate`` with every provider, and the memory kept from call to call."""
    fastest = records.provider(result, "doratune-lora").milliseconds.minimum
    rows = []
    for one in result.providers:
        cells = [
            f"{one.tokens_per_second:,.0f}",
            *(words.ratio(one.ratios["time"].get(name)) for name in ("base", "peft-lora", "doratune-lora")),
            words.ratio(one.milliseconds.minimum / fastest),
            f"{one.kept_bytes / 1e6:,.1f} MB",
        ]
        ours = one.provider == "doratune-dora"
        rows.append([WRITERS[one.provider], *(f"**{cell}**" if ours else cell for cell in cells)])
    heading = ["", "tokens/s", "÷ base", "÷ PEFT LoRA", "÷ our LoRA", "fastest ÷ fastest of our LoRA"]
    return words.table([*heading, "kept between calls"], rows)


def one_line(record: Any) -> str:
    """What the line costs and saves in a script on stock TRL."""
    names = {
        "peft-lora": "PEFT's LoRA",
        "enabled-lora": "the same after `enable`",
        "peft-dora": "PEFT's DoRA",
        "enabled-dora": "the same after `enable`",
    }
    rows = []
    for name, title in names.items():
        cells = []
        for result in record["results"]:
            one = result["providers"][name]
            cells += [words.milliseconds(one["milliseconds"]["median"])]
            cells += [words.ratio(one["time_ratios"]["peft-lora"]), words.gigabytes(one["peak_bytes"])]
        rows.append([title, *cells])
    kept = ["÷ PEFT LoRA", "peak"]
    return words.table(["", "checkpointed", *kept, "not checkpointed", *kept], rows)


def train_memory(record: Any) -> str:
    """The memory that a dry run estimates, and what the run takes."""
    rows = [
        [
            one["name"],
            words.gigabytes(one["estimated_bytes"]),
            words.gigabytes(one["measured_bytes"]),
            words.ratio(one["ratio"]),
        ]
        for one in record["results"]
    ]
    return words.table(["", "estimated", "measured", "÷ measured"], rows)


def small_layers(record: Any) -> str:
    """What each provider adds to a tiny layer."""
    names = [*LAYERS[:4]]
    rows = []
    for title, name in names:
        one = record["results"][name]
        added = one["added_microseconds_per_layer"]["median"]
        ratios = (words.ratio(one["added_ratios"][other]) for other in ("peft-lora", "peft-dora"))
        rows.append([title, f"{added:.0f} µs", *ratios])
    return words.table(["", "added to a layer", "÷ PEFT LoRA", "÷ PEFT DoRA"], rows)


def quantised(record: Any) -> str:
    """The error of the norm over quantised bases."""
    names = {
        "bnb_4bit": "bitsandbytes, 4 bits",
        "bnb_8bit": "bitsandbytes, 8 bits",
        "torchao_int8": "torchao, int8",
    }
    rows = [
        [names[one["base"]], words.ratio(one["update"]), f"{one['largest_error']:.1e}"]
        for one in record["results"]
    ]
    return words.table(["base", "‖sBA‖ ÷ ‖W‖", "largest error of a row's norm"], rows)


def likelihood(record: Any) -> str:
    """The cost of ranking candidates."""
    titles = {"instruct": "labels, such as `ending3`", "continuation": "whole endings"}
    rows = [[titles[one["format"]], f"**{words.ratio(one['ratio'])}**"] for one in record["results"]]
    return words.table(["candidates", "÷ one pass over the prompts"], rows)


def pipeline_costs(names: list[str]) -> str:
    """Time and memory of each command, here and as the original study computes."""
    heading, found = [""], []
    for name in names:
        record = records.pipeline(name)
        where = f"{records.machine(record.machine.environment)}, {record.model.dtype}"
        heading += [f"doratune: {where}", f"original: {where}"]
        found.append(record)
    rows = []
    for title, ours, theirs in PHASES:
        cells = []
        for record in found:
            cells += [_cost(record, ours), _cost(record, theirs) if theirs else "–"]
        rows.append([title, *cells])
    return words.table(heading, rows)


def _cost(record: PipelineBenchRecord, phase: Phase) -> str:
    costs = [one.phases[phase] for one in record.rounds]
    seconds = median(cost.seconds for cost in costs)
    peak = median(cost.peak_bytes for cost in costs)
    return f"{seconds:.0f} s, {words.gigabytes(peak)}"


def pipeline_summary(names: list[str]) -> str:
    """What came out of every pipeline, with its targets."""
    found = [records.pipeline(name) for name in names]
    heading = ["", "target"]
    heading += [f"{records.machine(one.machine.environment)}, {one.model.dtype}" for one in found]
    rows = [["rounds", "", *(str(len(one.rounds)) for one in found)]]
    rows.append(["day", "", *(words.day(one.started) for one in found)])
    for figure, title in FIGURES.items():
        show = words.percent if figure == "same_answers" else words.ratio
        verdicts = [verdict for one in found for verdict in one.verdicts if verdict.figure == figure]
        cells = [f"{show(one.measured)}{'' if one.met else ' (missed)'}" for one in verdicts]
        rows.append([title, f"≥ {show(verdicts[0].at_least)}", *cells])
    return words.table(heading, rows)


def agreement(record: Any) -> str:
    """How many rows two ways of computing answer in the same way."""
    same = {frozenset(one["ways"]): one["same"] for one in record["agreement"]}
    rows = []
    for first in WAYS:
        cells = [
            str(record["rows"]) if first == second else str(same[frozenset((first, second))])
            for second in WAYS
        ]
        rows.append([WAYS[first], *cells])
    return words.table(["", *WAYS.values()], rows)


def correlations(record: Any) -> str:
    """Correlation of the changes of magnitude and direction, by method and kind of layer."""
    titles = {"full": "full fine-tuning", "lora": "LoRA", "dora": "DoRA"}
    rows = []
    for run in record.runs:
        found = {one.kind: one.correlation for one in run.correlations}
        cells = [CORRELATION[run.method], found["all"], *(found[kind] for kind in KINDS)]
        rows.append([titles[run.method], *(f"{cell:+.2f}".replace("-", "−") for cell in cells)])
    return words.table(["", "paper", "all", *KINDS.values()], rows)


def first_run(names: list[str]) -> str:
    """The accuracies of the first run."""
    rows = []
    for one in (task for name in names for task in records.first_run(name)["tasks"]):
        arms, difference = one["arms"], one["difference"]
        rows.append(
            [
                f"{one['task']}, {one['format']}, {one['protocol']} ({one['rows']:,})",
                words.percent(one["majority"]),
                words.percent(arms["base"]["accuracy"]),
                *(
                    f"{words.percent(arms[arm]['accuracy'])} ({words.percents(arms[arm]['interval'])})"
                    for arm in ("lora", "dora")
                ),
                f"{words.points(difference['points'])} (p = {difference['p_value']:.3f})",
            ]
        )
    heading = ["task, format, protocol (test rows)", "majority", "base", "LoRA", "DoRA"]
    return words.table([*heading, "DoRA − LoRA, points"], rows)


def conversion(record: Any) -> str:
    """What a LoRA of each rank keeps of each DoRA adapter."""
    rows = []
    for one in record["results"]:
        accuracy = words.percent(one["accuracy"]) if "accuracy" in one else "–"
        rows.append([f"**{adapter_name(one)}**", "", "", "", accuracy, ""])
        for kept in one["ranks"]:
            measured = "accuracy" in kept
            rows.append(
                [
                    f"LoRA, rank {kept['rank']}",
                    words.percent(kept["left_out"]),
                    f"{kept['kl']:.1e}",
                    words.percent(kept["same_top"]),
                    words.percent(kept["accuracy"]) if measured else "–",
                    f"{kept['p_value']:.3f} ({kept['only_source']} : {kept['only_converted']})"
                    if measured
                    else "–",
                ]
            )
    heading = ["", "left out of ‖ΔW‖", "mean KL", "same top-1", "accuracy", "p (rows lost : won)"]
    return words.table(heading, rows)


def adapter_name(one: Any) -> str:
    """An adapter of the record of conversions."""
    return f"DoRA, rank {one['rank']}, {one['steps']} steps"


def conversion_needed(record: Any, kls: tuple[float, ...]) -> str:
    """The smallest LoRA rank that keeps to a KL, for each DoRA adapter."""
    rows = []
    for one in record["results"]:
        found = [next((kept["rank"] for kept in one["ranks"] if kept["kl"] <= kl), None) for kl in kls]
        rows.append([adapter_name(one), *("more" if rank is None else str(rank) for rank in found)])
    return words.table(["", *(f"KL ≤ {kl:g}" for kl in kls)], rows)


def conversion_ps(record: Any) -> list[float]:
    """The p of each comparison of accuracies, ascending."""
    return sorted(kept["p_value"] for one in record["results"] for kept in one["ranks"] if "p_value" in kept)


def magnitude_parts(record: Any) -> str:
    """How much of ΔW is the magnitude's."""
    rows = [
        [
            adapter_name(one),
            f"{one['gain_deviation']:.4f}",
            words.percent(one["magnitude_share"]),
            words.percent(one["same_rank_left_out"]),
        ]
        for one in record["results"]
    ]
    heading = ["", "root mean square of g − 1", "‖(g − 1) ⊙ W‖ ÷ ‖ΔW‖", "left out by LoRA of the same rank"]
    return words.table(heading, rows)
