"""sample-hellaswag: a person takes one of two things; what happens next?"""

from __future__ import annotations

import random

from doratune.data.rows import Row, make_row
from doratune.data.samples.facts import balanced_order, load, people, rng_for
from doratune.data.samples.objects import Thing, things

_CHOICES = 4


def build(split: str, count: int) -> list[Row]:
    """Build ``count`` rows of ``split``.

    A question names the thing taken and the thing left. The endings are those of these two and of two unnamed
    things; all four are from different groups, so only one ending fits. Each question has a twin with the
    same endings and the two named things swapped.
    """
    rng = rng_for("sample-hellaswag", split)
    templates, persons, known = load("hellaswag")["templates"], people(split), things(split)
    twins = [_draw_things(known, rng) for _ in range(count // 2)]
    rows = []
    for i, drawn in enumerate(twins):
        # i // 2: two pairs of twins fill the four positions, and a template must not predict a position
        template = templates[i // 2 % len(templates)]
        person, pronoun = persons[rng.randrange(len(persons))]
        swapped = [drawn[1], drawn[0], *drawn[2:]]
        for j, (thing, other, *rest) in enumerate((drawn, swapped)):
            context = template.format(name=person, they=pronoun, thing=thing.name, other=other.name)
            wrong = rng.sample([other, *rest], _CHOICES - 1)
            right = (2 * i + j) % _CHOICES
            endings = [t.ending for t in (*wrong[:right], thing, *wrong[right:])]
            rows.append(_row(f"{context} {pronoun.capitalize()}", endings, right))
    return balanced_order(rows, rng)


def _draw_things(known: list[Thing], rng: random.Random) -> list[Thing]:
    """Four things from four groups."""
    drawn = rng.sample(known, _CHOICES)
    while len({thing.group for thing in drawn}) < _CHOICES:
        drawn = rng.sample(known, _CHOICES)
    return drawn


def _row(context: str, endings: list[str], right: int) -> Row:
    listed = " ".join(f"Ending{n}: {ending}" for n, ending in enumerate(endings, start=1))
    instruction = (
        f"Please choose the correct ending to complete the given sentence: {context}\n\n{listed}\n\n"
        "Answer format: ending1/ending2/ending3/ending4"
    )
    return make_row(instruction, f"ending{right + 1}")
