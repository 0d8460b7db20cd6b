"""The wordings of the LLM-Adapters layout: rendering a question as an instruction, and reading it back.

The wordings are those of the data files of github.com/AGI-Edgerunners/LLM-Adapters (Apache-2.0), where some
tasks share one; each is a YAML file in ``layouts/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, cached_property
from string import Formatter
from typing import NamedTuple

from pydantic import Field, model_validator

from doratune.data.fields import Unfit, columns
from doratune.named_yaml import read_definitions
from doratune.records.run import Metric
from doratune.settings import Settings

MOST = 26
"""The most options that a question may have, one for each letter from A to Z."""


class Substitution(Settings):
    """A regular expression and the replacement of its matches."""

    find: str
    replace: str


class Question(NamedTuple):
    """What an instruction asks.

    Attributes:
        stem: The question, sentence or context, without the options.
        options: The text of every answer, in order.
    """

    stem: str
    options: tuple[str, ...]


class Layout(Settings):
    """One wording, and how the continuation format is made from it."""

    name: str = ""
    """Name of the file; empty for a layout inside a task's file."""
    template: str
    """The instruction: text, {stem}, text, then {options} and text if options are listed, then {labels}."""
    labels: list[str]
    """What the answers are called, in order; a question with fewer options uses the first ones."""
    fewest: int
    """Smallest number of options."""
    option: str | None = None
    """One option in the list, with {number} or {label}, and {text} at its end; None if the labels are the
    options."""
    between: str = ""
    """The separator between two options."""
    continuation: str
    """The instruction of the continuation format, with {stem}."""
    whole_words: bool = True
    """Whether a label in a generated text counts only as a whole word; False in the original study."""
    metric: Metric
    """How the answers' texts are ranked: per byte where lm-evaluation-harness too divides by their length."""
    clean: list[Substitution] = Field(default=[])
    """Applied in order to stem and options, in the continuation format only."""

    @model_validator(mode="after")
    def _fits_together(self) -> Layout:
        _check_labels(self.labels, self.fewest)
        listed = self.option is not None
        fields = ["stem", "options", "labels"] if listed else ["stem", "labels"]
        if columns(self.template) != fields or not self.template.endswith("{labels}"):
            named = ", ".join(f"{{{name}}}" for name in fields[:-1])
            raise Unfit(
                "template", f"a text with {named} and, at its end, {{labels}}, each once in this order"
            )
        listing = columns(self.option) if self.option is not None else []
        if self.option is not None and (listing not in _OPTION_FIELDS or not self.option.endswith("{text}")):
            raise Unfit("option", "a text with {label} or {number} and, at its end, {text}")
        if listed and not self.between:
            raise Unfit("between", "what separates two options, such as a line break")
        if columns(self.continuation) != ["stem"]:
            raise Unfit("continuation", "a text with {stem} once")
        for number, substitution in enumerate(self.clean):
            try:
                re.compile(substitution.find)
            except re.error as error:
                raise Unfit(f"clean.{number}.find", f"a regular expression ({error})") from None
            try:
                re.sub(f"(?:{substitution.find})|", substitution.replace, "")
            except (re.error, IndexError) as error:
                raise Unfit(f"clean.{number}.replace", f"the replacement of a match ({error})") from None
        return self

    @cached_property
    def pattern(self) -> str:
        """Regular expression for an answer in a generated text, case-sensitive as in the original study."""
        # A label that begins another comes after it; the others stay in the original study's order.
        begun = [any(one != label and one.startswith(label) for one in self.labels) for label in self.labels]
        longest = sorted(self.labels, key=len, reverse=True) if any(begun) else self.labels
        labels = "|".join(re.escape(label) for label in longest)
        return rf"(?<!\w)(?:{labels})(?!\w)" if self.whole_words else labels

    def fits(self, count: int) -> bool:
        """Whether a question may have this many options."""
        return self.fewest <= count <= len(self.labels)

    def render(self, question: Question) -> str:
        """The instruction that asks ``question``; the inverse of :meth:`parse`."""
        count = len(question.options)
        options = (
            [self._option_head(i) + text for i, text in enumerate(question.options)] if self.option else []
        )
        return self.template.format(
            stem=question.stem, options=self.between.join(options), labels="/".join(self.labels[:count])
        )

    def parse(self, instruction: str) -> Question | None:
        """The question inside an instruction, or None if the instruction has another wording."""
        head, *middle, tail = self._literals
        if not instruction.startswith(head):
            return None
        body, _, listed_labels = instruction.removeprefix(head).rpartition(tail)
        count = self._counts.get(listed_labels)
        if count is None:
            return None
        if self.option is None:
            return Question(body, tuple(self.labels[:count]))
        texts = []
        for i in range(count):
            separator = self.between if i else middle[0]
            text, found, body = body.partition(separator + self._option_head(i))
            if not found:
                return None
            texts.append(text)
        if count < len(self.labels) and self.between + self._option_head(count) in body:
            return None  # more options than labels
        return Question(texts[0], (*texts[1:], body))

    def ambiguity(self, instruction: str) -> str | None:
        """Text that an instruction of this layout holds twice, so its options may begin at either place."""
        if self.option is None:
            return None
        _, *middle, _ = self._literals
        heads = [
            (self.between if i else middle[0]) + self._option_head(i)
            for i in range(len((self.parse(instruction) or Question("", ())).options))
        ]
        return next((head for head in heads if instruction.count(head) > 1), None)

    def continue_from(self, question: Question) -> Question:
        """Instruction and candidates of the continuation format.

        Returns:
            The instruction as ``stem``, and the answers' texts, stripped of spaces, as ``options``.
        """
        stem = self.continuation.format(stem=self._cleaned(question.stem))
        return Question(stem, tuple(self._cleaned(text) for text in question.options))

    def _option_head(self, index: int) -> str:
        return (self.option or "").format(number=index + 1, label=self.labels[index], text="")

    def _cleaned(self, text: str) -> str:
        for substitution in self.clean:
            text = re.sub(substitution.find, substitution.replace, text)
        return text.strip()

    @cached_property
    def _literals(self) -> list[str]:
        """The template's texts before, between and after its fields."""
        return [text for text, *_ in Formatter().parse(self.template)]

    @cached_property
    def _counts(self) -> dict[str, int]:
        """How many options an instruction has, by the labels at its end."""
        return {"/".join(self.labels[:count]): count for count in range(self.fewest, len(self.labels) + 1)}


_OPTION_FIELDS = (["label", "text"], ["number", "text"])


def _check_labels(labels: list[str], fewest: int) -> None:
    if not 2 <= len(labels) <= MOST:
        raise Unfit("labels", f"2 to {MOST} labels", got=f"{len(labels)}")
    if len(set(labels)) < len(labels):
        raise Unfit("labels", "each label once")
    if wrong := [label for label in labels if not label or label != label.strip() or "/" in label]:
        raise Unfit("labels", "labels without a slash and without space around them", got=repr(wrong[0]))
    if not 2 <= fewest <= len(labels):
        raise Unfit("fewest", f"2 to {len(labels)}, the number of labels")


@cache
def layouts() -> dict[str, Layout]:
    """Every wording by name."""
    return read_definitions("doratune.data", "layouts", Layout)


def recognise(instruction: str, among: Iterable[Layout]) -> tuple[Layout, Question] | None:
    """The given layout that the instruction is written in, and its question; None if there is none."""
    for layout in among:
        question = layout.parse(instruction)
        if question is not None:
            return layout, question
    return None
