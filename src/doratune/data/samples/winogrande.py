"""sample-winogrande: which of two objects is used? Each sentence has a twin with the other answer."""

from __future__ import annotations

from itertools import permutations

from doratune.data.rows import Row, make_row
from doratune.data.samples.facts import balanced_order, load, people, rng_for
from doratune.data.samples.objects import tools


def build(split: str, count: int) -> list[Row]:
    """Build ``count`` rows of ``split``.

    A sentence names two objects from two groups and what is done with one of them; the blank is at its end.
    Twins differ only in what is done, so their answers differ. The object named first is option 1 as often as
    option 2.
    """
    rng = rng_for("sample-winogrande", split)
    templates, persons = load("winogrande")["templates"], people(split)
    pairs = [pair for pair in permutations(tools(split), 2) if pair[0].group != pair[1].group]
    rows: list[Row] = []
    for i, pair in enumerate(rng.sample(pairs, count // 2)):
        template = templates[
            i // 2 % len(templates)
        ]  # i // 2: a template must not predict the order of the options
        name, they = rng.choice(persons)
        first, second = (_with_article(thing.name) for thing in pair)
        options = tuple(thing.name for thing in (pair if i % 2 == 0 else reversed(pair)))
        for thing in pair:
            does = thing.ending.removesuffix(".")
            sentence = template.format(
                name=name, they=they, They=they.capitalize(), a=first, b=second, does=does
            )
            rows.append(_row(sentence, options, thing.name))
    return balanced_order(rows, rng)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _row(sentence: str, options: tuple[str, ...], right: str) -> Row:
    instruction = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{sentence}\n\nOption1: {options[0]} Option2: {options[1]} Answer format: option1/option2"
    )
    return make_row(instruction, f"option{options.index(right) + 1}")
