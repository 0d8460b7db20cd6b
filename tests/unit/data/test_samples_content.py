"""The built-in samples as tasks: unseen entities in the test split, and no shortcut around what is asked."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache

import pytest

from doratune.data.samples import SAMPLE_TASKS, generate
from doratune.data.samples.facts import load

SPLITS = ("train", "test")


@cache
def whole(entity: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(entity)}(?![\w-])")


def appears(entity: str, text: str) -> bool:
    return entity in text and whole(entity).search(text) is not None


@cache
def objects(split: str, *, tools: bool = False) -> dict[str, tuple[str, str]]:
    """Ending and group of every object of sample-hellaswag or, the tools, of sample-winogrande."""
    found = {}
    for group in load("objects")["groups"]:
        facts = group[split]
        if tools:
            facts = {name: facts[name] for name in group.get("tools", []) if name in facts}
            facts |= group.get("more_tools", {}).get(split, {})
        found |= {name: (ending, group["name"]) for name, ending in facts.items()}
    return found


def people(split: str) -> list[str]:
    return [name for names in load("names")[split].values() for name in names]


def context(row: dict[str, str]) -> str:
    return row["instruction"].split("given sentence: ")[1].split("\n\n")[0]


def endings(row: dict[str, str]) -> list[str]:
    return [part.strip() for part in re.split(r"Ending\d: ", row["instruction"].split("\n\n")[1])[1:]]


def options(row: dict[str, str]) -> list[str]:
    match = re.search(r"Option1: (\w+) Option2: (\w+) Answer", row["instruction"])
    assert match
    return list(match.groups())


def entities(task: str, split: str) -> list[str]:
    if task == "sample-boolq":
        facts = load("boolq")
        return [*facts["things"][split], *(name.lower() for name in people(split))]
    known = objects(split, tools=task == "sample-winogrande")
    return [*known, *(ending.rstrip(".") for ending, _ in known.values()), *people(split)]


@pytest.mark.parametrize("task", SAMPLE_TASKS)
@pytest.mark.parametrize(("shown", "held_out"), [("train", "test"), ("test", "train")])
def test_entities_of_one_split_never_appear_in_the_other_of_any_task(task, shown, held_out):
    """Of any task, since the three are trained together."""
    text = "\n".join(row["instruction"] for other in SAMPLE_TASKS for row in generate(other, shown))
    leaked = [entity for entity in entities(task, held_out) if appears(entity, text)]
    assert leaked == []


@pytest.mark.parametrize("task", SAMPLE_TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_entity_is_used(task, split):
    text = "\n".join(row["instruction"] for row in generate(task, split))
    assert [entity for entity in entities(task, split) if not appears(entity, text)] == []


@pytest.mark.parametrize("task", SAMPLE_TASKS)
def test_no_fact_is_listed_twice(task):
    listed = [entity for split in SPLITS for entity in entities(task, split)]
    assert [entity for entity, n in Counter(listed).items() if n > 1] == []


@pytest.mark.parametrize("task", SAMPLE_TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_articles_fit_the_word_after_them(task, split):
    text = "\n".join(row["instruction"] for row in generate(task, split))
    assert re.findall(r"\ba [aeiou]\w+|\ban [^aeiou]\w+", text) == []


def test_every_tool_is_an_object():
    for group in load("objects")["groups"]:
        assert set(group.get("tools", [])) <= {*group["train"], *group["test"]}


@pytest.mark.parametrize("split", SPLITS)
class TestBoolq:
    # Written out by hand, independently of the facts: who owns what, and the word that denies it.
    ASKED = r", does the (?P=thing) belong to (?P=owner)"
    FORMS = (
        r"the (?P<thing>\w+) (?P<no>does not )?belongs? to (?P<owner>\w+)" + ASKED,
        r"(?P<owner>\w+) (?P<no>does not )?owns? the (?P<thing>\w+)" + ASKED,
        r"(?P<owner>\w+) is (?P<no>not )?the owner of the (?P<thing>\w+)" + ASKED,
        r"this (?P<thing>\w+) is (?P<no>not )?the property of (?P<owner>\w+)" + ASKED,
    )

    def read(self, split):
        """(match, answer) of every row, read from its text."""
        for row in generate("sample-boolq", split):
            question = row["instruction"].split("question: ")[1].split("?")[0]
            (match,) = filter(None, (re.fullmatch(form, question) for form in self.FORMS))
            yield match, row["answer"]

    def test_what_is_said_is_true_and_what_is_denied_is_false(self, split):
        for match, answer in self.read(split):
            assert (match["no"] is None) is (answer == "true")

    def test_owners_are_people(self, split):
        names = {name.lower() for name in people(split)}
        assert {match["owner"] for match, _ in self.read(split)} <= names

    def test_everything_said_is_also_denied(self, split):
        twins: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for match, answer in self.read(split):
            twins[match.re.pattern, match["thing"], match["owner"]].append(answer)
        for statement, answers in twins.items():
            assert sorted(answers) == ["false", "true"], statement

    @pytest.mark.parametrize("part", ["thing", "owner", "wording"])
    def test_no_single_part_tells_the_answer(self, split, part):
        count: dict[str, Counter] = defaultdict(Counter)
        for match, answer in self.read(split):
            count[match.re.pattern if part == "wording" else match[part]][answer] += 1
        for key, answers in count.items():
            assert answers["true"] == answers["false"], (key, answers)


@pytest.mark.parametrize("split", SPLITS)
class TestHellaswag:
    def test_the_ending_of_the_thing_in_hand_is_the_answer(self, split):
        things = objects(split)
        # Written out by hand, independently of the templates: where the thing in hand stands.
        taken = re.compile(r"(?:picks up|takes|reaches for) the (.+?)(?: and leaves| because| instead|\.)")
        for row in generate("sample-hellaswag", split):
            match = taken.search(context(row))
            assert match
            ending, _ = things[match[1]]
            assert endings(row)[int(row["answer"][-1]) - 1] == ending

    def test_endings_come_from_four_groups_and_two_are_of_named_things(self, split):
        group_of = dict(objects(split).values())
        thing_of = {ending: thing for thing, (ending, _) in objects(split).items()}
        for row in generate("sample-hellaswag", split):
            assert len({group_of[ending] for ending in endings(row)}) == 4
            assert sum(appears(thing_of[ending], context(row)) for ending in endings(row)) == 2

    def test_twins_swap_the_answer_of_the_same_endings(self, split):
        right: dict[frozenset, Counter] = defaultdict(Counter)
        for row in generate("sample-hellaswag", split):
            listed = endings(row)
            right[frozenset(listed)][listed[int(row["answer"][-1]) - 1]] += 1
        for counts in right.values():
            assert len(counts) >= 2

    def test_the_right_ending_is_not_told_by_its_length(self, split):
        longest = shortest = 0
        rows = generate("sample-hellaswag", split)
        for row in rows:
            lengths = [len(ending) for ending in endings(row)]
            right = lengths[int(row["answer"][-1]) - 1]
            longest += right == max(lengths)
            shortest += right == min(lengths)
            assert max(lengths) <= 3 * min(lengths)
        assert longest / len(rows) < 0.33
        assert shortest / len(rows) < 0.33

    def test_the_wording_does_not_tell_the_position(self, split):
        things = objects(split)
        count: dict[str, Counter] = defaultdict(Counter)
        for row in generate("sample-hellaswag", split):
            wording = context(row)
            for entity in sorted([*things, *people(split), "She", "He"], key=len, reverse=True):
                wording = wording.replace(entity, "")
            count[wording][row["answer"]] += 1
        assert len(count) == len(load("hellaswag")["templates"])
        for positions in count.values():
            assert len(positions) == 4 and max(positions.values()) - min(positions.values()) <= 1

    def test_the_order_of_the_two_things_does_not_tell_the_answer(self, split):
        things, first = objects(split), 0
        rows = generate("sample-hellaswag", split)
        for row in rows:
            right = endings(row)[int(row["answer"][-1]) - 1]
            mentioned = [t for t in things if appears(t, context(row))]
            first += things[min(mentioned, key=context(row).index)][0] == right
        assert 0.45 < first / len(rows) < 0.55

    def test_of_the_two_things_named_the_right_ending_comes_first_as_often_as_last(self, split):
        thing_of = {ending: thing for thing, (ending, _) in objects(split).items()}
        rows, first = generate("sample-hellaswag", split), 0
        for row in rows:
            named = [ending for ending in endings(row) if appears(thing_of[ending], context(row))]
            first += named[0] == endings(row)[int(row["answer"][-1]) - 1]
        assert 0.45 < first / len(rows) < 0.55

    def test_no_ending_tells_the_answer_among_those_of_the_things_named(self, split):
        thing_of = {ending: thing for thing, (ending, _) in objects(split).items()}
        count: dict[str, Counter] = defaultdict(Counter)
        for row in generate("sample-hellaswag", split):
            right = endings(row)[int(row["answer"][-1]) - 1]
            for ending in endings(row):
                if appears(thing_of[ending], context(row)):
                    count[ending][ending == right] += 1
        for ending, sides in count.items():
            assert sides[True] == sides[False], ending


@pytest.mark.parametrize("split", SPLITS)
class TestWinogrande:
    # Written out by hand, independently of the templates.
    FORM = re.compile(
        r"(?:\w+ (?P<verb>has|finds|borrows)|In front of \w+ there is) an? (?P<first>\w+)"
        r"(?: and| next to| and also) an? (?P<second>\w+)(?:\.|, and then) (?:She|He|she|he) "
        r"(?P<does>.+) with the _\."
    )

    def read(self, split):
        """(row, match, right object) of every row; the blank is at the end of every sentence."""
        for row in generate("sample-winogrande", split):
            match = self.FORM.fullmatch(context(row))
            assert match and {match["first"], match["second"]} == set(options(row)), row["instruction"]
            yield row, match, options(row)[int(row["answer"][-1]) - 1]

    def test_the_object_used_is_the_answer_and_only_it_fits(self, split):
        tools = objects(split, tools=True)
        for _, match, right in self.read(split):
            assert tools[right][0] == f"{match['does']}."
            assert tools[match["first"]][1] != tools[match["second"]][1]

    def test_every_sentence_has_a_twin_with_the_other_answer(self, split):
        twins: dict[tuple, list] = defaultdict(list)
        for row, match, right in self.read(split):
            key = (match.string.replace(match["does"], ""), *options(row))
            twins[key].append((match["does"], right))
        for key, both in twins.items():
            assert len(both) == 2 and both[0][0] != both[1][0] and both[0][1] != both[1][1], key

    def test_no_object_is_the_answer_more_often_than_the_other_one(self, split):
        count: dict[str, Counter] = defaultdict(Counter)
        for _, match, right in self.read(split):
            for thing in (match["first"], match["second"]):
                count[thing][thing == right] += 1
        for thing, sides in count.items():
            assert sides[True] == sides[False], thing

    def test_neither_wording_nor_order_in_the_sentence_nor_order_of_the_options_tells_the_answer(self, split):
        count: Counter = Counter()
        for row, match, right in self.read(split):
            count[match["verb"], options(row)[0] == match["first"], right == match["first"]] += 1
        # Every combination equally often, of which the last two fix the option that is right.
        assert len(count) == 4 * 2 * 2
        assert len(set(count.values())) == 1
