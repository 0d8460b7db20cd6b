"""The objects of sample-hellaswag and sample-winogrande, and what a person does with them."""

from __future__ import annotations

from typing import NamedTuple

from doratune.data.samples.facts import load


class Thing(NamedTuple):
    """An object.

    Attributes:
        name: The object, without an article.
        ending: What a person does with it, as a sentence without its subject.
        group: Things in one group could be mistaken for one another.
    """

    name: str
    ending: str
    group: str


def things(split: str) -> list[Thing]:
    """The objects of sample-hellaswag."""
    return [
        Thing(name, ending, group["name"])
        for group in load("objects")["groups"]
        for name, ending in group[split].items()
    ]


def tools(split: str) -> list[Thing]:
    """The objects of sample-winogrande: "{ending} with the {name}" is good English for each."""
    return [
        Thing(name, ending, group["name"])
        for group in load("objects")["groups"]
        for name, ending in {
            **{name: ending for name, ending in group[split].items() if name in group.get("tools", [])},
            **group.get("more_tools", {}).get(split, {}),
        }.items()
    ]
