"""``doratune env``."""

from __future__ import annotations

from doratune.cli.parse import AsJson, parse
from doratune.settings import Settings

ABOUT = """Show what is installed, and how the engine would compute here and why.

Examples:
  doratune env
  doratune env --json
"""


class EnvCommand(Settings):
    """The flags of ``doratune env``."""

    as_json: AsJson = False
    """Print JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(EnvCommand, argv, verb="env", about=ABOUT)

    import torch

    from doratune.cache import cache_home
    from doratune.cli.installed import INSTALL, unmet
    from doratune.cli.output import print_json
    from doratune.engine.matmul import explain_way
    from doratune.engine.triton.select import kernel_obstacle
    from doratune.environment import describe_environment
    from doratune.models.builtin import BUILTIN
    from doratune.models.precision import resolve_dtype

    environment = describe_environment()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    obstacle = kernel_obstacle(device)
    usable = {
        "device": environment.gpu or environment.cpu,
        "dtype auto": str(resolve_dtype("auto", device.type)).removeprefix("torch."),
        **{
            f"{dtype} on CPU": explain_way(getattr(torch, dtype))
            for dtype in ("float32", "bfloat16", "float16")
        },
        "Triton kernels": "used on this GPU" if obstacle is None else f"not used: {obstacle}",
        "command line": f"no ({INSTALL})" if unmet("train") else "all verbs",
        "4-bit base": "bitsandbytes"
        if "bitsandbytes" in environment.packages
        else "no (pip install 'doratune[bnb]')",
        "built-in models": ", ".join(BUILTIN),
        "cache": str(cache_home()),
    }
    if command.as_json:
        print_json({"environment": environment.to_dict(), "usable": usable})
        return 0
    stamped = environment.to_dict()
    packages = stamped.pop("packages")
    for section in (stamped, packages, usable):
        for key, value in section.items():
            print(f"{key:<16} {value}")
        print()
    return 0
