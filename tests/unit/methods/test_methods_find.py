"""Methods are YAML files: the shipped ones, and one's own by path."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from doratune.errors import InputError
from doratune.methods.find import get_method, method_names, own_definition, plain_name, title_of
from doratune.methods.former import FORMER, former_method, without_switches
from doratune.methods.method import Method

OWN = """
name: my-lora
title: My LoRA
description: LoRA with a bias for B
peft: LoraConfig
arguments: {lora_bias: true}
engine: true
merges: base
"""


def own(folder: Path, text: str = OWN) -> str:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_shipped_method_has_its_files_name_and_a_title() -> None:
    titles = {title_of(name) for name in method_names()}
    assert len(titles) == len(method_names()) and titles.isdisjoint(method_names())
    for name in method_names():
        method = get_method(name)
        assert method.name == plain_name(name) == name and own_definition(name) is None
        assert "\n" not in method.description and (method.paper or name == "full")


def test_no_method_is_shipped_twice() -> None:
    files = [
        path.read_text(encoding="utf-8")
        for path in (resources.files("doratune.methods") / "shipped").iterdir()
    ]
    assert len({tuple(text.splitlines()[4:]) for text in files}) == len(files)


def test_what_decides_a_training_is_not_its_words() -> None:
    method, plus = get_method("lora"), get_method("lora-plus")
    words = {"title": "t", "description": "d", "paper": None, "merges": "nothing"}
    assert method.model_copy(update=words).deciding == method.deciding
    assert plus.model_copy(update={"name": "lora"}).deciding != method.deciding


def test_the_reference_lists_every_method() -> None:
    page = Path(__file__).parents[3] / "docs/reference/tasks-models-methods.md"
    into = {"base": "the base", "changed-base": "the base, changed", "nothing": "–"}
    for name in method_names():
        method = get_method(name)
        what = f"[{method.title}]({method.paper})" if method.paper else method.title
        computed = "engine" if method.engine else "–" if method.trains_all else "PEFT"
        row = f"| `{name}` | {what} | {computed} | {', '.join(method.given) or '–'} | {into[method.merges]} |"
        assert row in page.read_text(encoding="utf-8").splitlines()


def test_the_file_in_the_reference_is_a_method(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/reference/tasks-models-methods.md").read_text(encoding="utf-8")
    method = get_method(own(tmp_path, page.partition("```yaml\n")[2].partition("```")[0]))
    assert method.given == get_method("lora").given and method.engine


def test_an_own_method_is_found_by_its_file(tmp_path: Path) -> None:
    path = own(tmp_path)
    method = get_method(path)
    assert (method.name, method.title, plain_name(path)) == ("my-lora", "My LoRA", "my-lora")
    assert Method.model_validate(own_definition(path)) == method
    assert title_of("my-lora") == "my-lora"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN.replace("my-lora", "dora"), "a shipped method has this name"),
        (OWN.replace("my-lora", "My/LoRA"), "name: should be up to 32 of a-z"),
        (OWN.replace("my-lora", "base"), "name: should be up to 32 of a-z"),
        (OWN.replace("arguments", "argument"), "did you mean 'arguments'?"),
        (OWN.replace("LoraConfig", "VeraConfig"), "only with peft: LoraConfig"),
        (OWN.replace("lora_bias: true", "r: 8"), "got: arguments should leave r to the run's settings"),
        (
            OWN + "norm_gradient: true",
            "got: norm_gradient should be true only with DoRA (use_dora) on the engine",
        ),
        (OWN + "match: dor", "did you mean dora?"),
        (OWN + "match: full", "a method without an adapter cannot be matched"),
        (OWN + "optimizer: {name: lora-plus}", "should have a ratio with lora-plus"),
        (OWN + "optimizer: {ratio: 4}", "should have a ratio with lora-plus"),
        (OWN.replace("title: ", "title: '' # "), "title"),
        (
            OWN.replace("engine: true", "settings: {rank: r, alpha: r}"),
            "settings should give each argument once",
        ),
        (
            "{name: my-full, title: F, description: f, peft: null, merges: nothing}",
            "only the shipped method full",
        ),
        ("- name", "not a mapping"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_message(text: str, said: str, tmp_path: Path) -> None:
    path = own(tmp_path, text)
    with pytest.raises(InputError) as caught:
        get_method(path)
    assert said in str(caught.value) and path in str(caught.value)
    assert "{" not in str(caught.value.got) or "optimizer" in str(caught.value.got), "not the whole file"


def test_an_unknown_name_leads_to_a_known_one() -> None:
    with pytest.raises(InputError, match="did you mean pissa") as caught:
        get_method("pisa", where="plan, methods")
    assert caught.value.where == "plan, methods" and "lora-matched" in str(caught.value.expected)


def test_what_older_versions_wrote_is_the_method_that_replaced_it() -> None:
    off = {"rslora": False, "norm_gradient": False}
    for name, settings in FORMER.items():
        config = {"rank": 4, **off, **settings}
        assert former_method(config["method"], config) == name
        assert without_switches(config) == {"rank": 4, "method": name}
    assert without_switches({"method": "full", **off}) == {"method": "full"}
    both = without_switches({"method": "dora", "rslora": True, "norm_gradient": True})
    assert both == {"method": "dora-rslora", "norm_gradient": True}, "what has no method is not dropped"
