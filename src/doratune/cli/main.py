"""``doratune VERB ...``: finds the verb, runs it, and turns errors into messages and exit codes.

Exit codes: 0 done, 1 failure, 2 the input cannot be used, 130 interrupted by Ctrl-C, 143 ended by SIGTERM.
``run`` exits as its script does.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import time
from pathlib import Path
from types import ModuleType

from doratune import __version__
from doratune.cli.installed import check_installed
from doratune.cli.interrupts import noting_interrupts
from doratune.cli.library_messages import show_library_logs
from doratune.errors import LONGEST, DoratuneError, InputError, OtherProcessError, did_you_mean
from doratune.launch import LINGERING, first_process_speaks, launched, refuse_several

VERBS = {
    "train": "fine-tune a causal LM with LoRA or DoRA, or all of its weights",
    "eval": "evaluate a run, an adapter or a base model by multiple choice",
    "compare": "base, LoRA and DoRA on the same rows, side by side",
    "study": "a plan: tasks, methods, rates and seeds, with statistics",
    "report": "the same table and report from runs that exist",
    "analyze": "how training moved the magnitude and direction of the weights",
    "merge": "an adapter into its base: a plain model folder, checked",
    "convert": "a DoRA adapter as plain LoRA, with what that costs",
    "export": "a base with its adapter merged, as a GGUF file for llama.cpp",
    "check-serving": "which servers load it, and what to do where they do not",
    "run": "your own script, with its PEFT models on the engine",
    "bench": "time and memory of DoRA and LoRA against PEFT's, layer or step",
    "tasks": "the tasks, their rows, and a template for your own",
    "methods": "the training methods, one per line",
    "models": "the built-in models, one per line, or the folder of one",
    "presets": "the presets, one per line",
    "env": "what is installed, and how the engine computes here",
}

SHARED = ("train", "eval", "run")
"""The verbs whose work several processes of a launcher share."""

COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")
"""tyro's own flags."""

OF_NAMES = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}
"""Errors of the system that a name given by the user causes."""
OF_FILES = {
    *OF_NAMES,
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE),
    *(errno.ENOENT, errno.EEXIST),
}
"""Errors of the system that are about the user's files and disks."""

HELP = """usage: doratune VERB [options]   (doratune VERB --help shows a verb's options)

DoRA at LoRA's price: fine-tune a language model with LoRA or DoRA, evaluate it,
compare the two.

verbs:
{verbs}

examples:
  doratune compare --preset demo --output runs/demo
  doratune tasks multiple-choice
  doratune train --task multiple-choice --data train.jsonl --output runs/dora
  doratune eval runs/dora --task multiple-choice --data test.jsonl
  doratune report runs/lora runs/dora --output runs/report
  doratune analyze runs/lora runs/dora --output runs/analysis
  doratune run train.py --output_dir out
  doratune bench op --set cpu --case 4096x4096-r32-t512

exit codes: 0 done, 1 failure, 2 the input cannot be used, 130 ended by Ctrl-C,
            143 ended by SIGTERM; run exits as its script does

shell completion (bash, zsh or tcsh):
  source <(doratune --tyro-print-completion bash)      # in ~/.bashrc
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments after the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(
            HELP.format(verbs="\n".join(f"  {verb:<{width}} {what}" for verb, what in VERBS.items())), end=""
        )
        return 0
    if arguments[0] == "--version":
        print(f"doratune {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    interrupts: list[int] = []
    try:
        if verb in COMPLETION:
            check_installed(verb)
            from doratune.cli.completion import complete

            complete(arguments)
            return 0
        with first_process_speaks():
            if verb not in VERBS:
                raise InputError(
                    "unknown verb",
                    got=verb,
                    expected=f"one of {', '.join(VERBS)}",
                    fix=did_you_mean(verb, VERBS, form="doratune {}") or "see doratune --help",
                )
            check_installed(verb)
        if verb not in SHARED:
            fix = "start it without a launcher"
            if verb == "study":
                fix += "; the plan's resources say how many processes each run has"
            refuse_several(f"doratune {verb} works in one process", fix=fix)
        if verb != "run":  # there the script decides
            show_library_logs()
        with noting_interrupts(interrupts):
            done = module_of(verb).main(rest)
    except DoratuneError as error:
        return _failed(error)
    except OSError as error:
        if error.errno not in OF_FILES:
            raise
        kind = InputError if error.errno in OF_NAMES or _unreadable(error.filename) else DoratuneError
        return _failed(
            kind(
                "a file or folder could not be read or written",
                where=error.filename and str(error.filename)[:LONGEST],
                got=error.strerror,
                fix="look at the path, its permissions and the disk's free space; what was written is kept",
            )
        )
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as end:  # tyro's, which has printed why
        if end.code and not launched().speaks:
            time.sleep(LINGERING)
        raise
    except Exception:
        if interrupts:
            return _interrupted()
        raise
    # What the user's script raises is not ours to turn into messages and exit codes.
    return done if isinstance(done, int) else done()


def module_of(verb: str) -> ModuleType:
    """The module of a verb in ``doratune.cli``."""
    return importlib.import_module(f"doratune.cli.{verb.replace('-', '_')}")


def _unreadable(name: object) -> bool:
    """Whether a file or folder may not be read, although it seems to exist."""
    if not isinstance(name, str | os.PathLike):
        return False
    try:
        Path(name).stat()
    except OSError as error:
        return error.errno == errno.EACCES
    return not os.access(name, os.R_OK)


def _interrupted() -> int:
    if launched().speaks:
        print("doratune: interrupted", file=sys.stderr)
    return 130


def _failed(error: DoratuneError) -> int:
    if isinstance(error, OtherProcessError):
        time.sleep(LINGERING)
    else:
        print(f"doratune: {error.message}", file=sys.stderr)
    return error.exit_code
