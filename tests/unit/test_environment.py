import platform
from pathlib import Path

from doratune.environment import describe_environment

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: {family}
model\t\t: 17
model name\t: AMD EPYC

processor\t: 1
model name\t: AMD EPYC
"""


def test_generations_of_one_name_are_told_apart(monkeypatch):
    """Of EPYCs that call themselves alike, family 25 is Zen 4 and family 26 is Zen 5."""
    names = []
    for family in (25, 26):
        monkeypatch.setattr(Path, "read_text", lambda *_, family=family, **__: X86.format(family=family))
        names.append(describe_environment().cpu)
    assert names == ["AMD EPYC (family 25, model 17)", "AMD EPYC (family 26, model 17)"]


def test_a_processor_without_such_numbers_has_its_name(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\nBogoMIPS\t: 50.00\n")
    monkeypatch.setattr(platform, "processor", lambda: "aarch64")
    assert describe_environment().cpu == "aarch64"


def test_a_system_without_cpuinfo_has_its_name(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert describe_environment().cpu == "arm"
