"""sample-boolq: who owns what, said or denied? Each question has a twin with the other answer."""

from __future__ import annotations

from itertools import product

from doratune.data.rows import Row, make_row
from doratune.data.samples.facts import balanced_order, load, people, rng_for

_INSTRUCTION = (
    "Please answer the following question with true or false, question: {question}?\n\n"
    "Answer format: true/false"
)


def build(split: str, count: int) -> list[Row]:
    """Build ``count`` rows of ``split``.

    A question says that a person owns a thing or does not, and asks whether the thing is theirs. Each row has
    a twin with the same person, thing and wording, said instead of denied.
    """
    rng = rng_for("sample-boolq", split)
    facts = load("boolq")
    names = [name.lower() for name, _ in people(split)]  # like all of BoolQ's questions
    # Without replacement, so that no row is repeated.
    drawn = rng.sample(list(product(facts["statements"], facts["things"][split], names)), count // 2)
    rows = []
    for statement, thing, owner in drawn:
        for holds, answer in ((True, "true"), (False, "false")):
            question = f"{statement[holds]}, {facts['question']}".format(thing=thing, owner=owner)
            rows.append(make_row(_INSTRUCTION.format(question=question), answer))
    return balanced_order(rows, rng)
