"""The kernels for GPUs where there is none: interpreted, and compiled for GPUs that are not here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from doratune.engine.triton.select import taken
from doratune.engine.triton.sizes import block_of, blocks

pytest.importorskip("triton", reason="no Triton")

ROOM = Path(__file__).parent
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}
"""Bytes that one program may take, by compute capability: A100, consumer GPUs since Ampere, H100."""


@pytest.mark.slow
def test_the_kernels_compute_what_they_should():
    """In a separate process: Triton decides whether to interpret when it is first imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "interpreted.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOM, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_the_kernels_fit_the_shared_memory(capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from doratune.engine.triton import content_hash, norm, tiled_norm
    from doratune.engine.triton import magnitude_backward as backward
    from doratune.engine.triton import magnitude_forward as forward

    bf16, fp32, size = "*bf16", "*fp32", "i32"
    is_large = SHARED_MEMORY[capability] >= norm.LARGE_SHARED_MEMORY
    counts = ["n_rows", "n_columns", "n_parts", "n_tiles", "d_out", "d_in", "rank", "A_size", "B_size"]
    counts += ["W_words", "W_parts", "A_parts", "B_parts"]
    sizes = dict.fromkeys(counts, size)
    types = {
        **sizes,
        **dict.fromkeys(("W", "x", "h", "z", "held", "out", "dY", "dZ", "split"), bf16),
        **dict.fromkeys(("A", "B", "m", "norm", "last", "sums", "dm"), fp32),
        **dict.fromkeys(("state", "known", "hashes"), "*i64"),
        **{"table": "*i64", "scalings": fp32, "norms": fp32},
        **dict.fromkeys(("arrivals", "matrix_of"), "*i32"),
        **{"W_row": size, "W_column": size, "scaling": "fp32"},
    }
    tile = {"ROWS": backward.ROWS, "COLUMNS": backward.COLUMNS, "STEPS": backward.STEPS}
    tile |= {"ALONE": False, "SMALLEST": 0.0, "SOURCE": False, "DEPTH": backward.DEPTH}
    alone = {"ROWS": backward.ROWS, "COLUMNS": backward.ALONE_COLUMNS, "STEPS": backward.ALONE_STEPS}
    alone |= {"ALONE": True, "SMALLEST": 0.01, "SOURCE": True, "DEPTH": backward.DEPTH}
    summed = {
        "ROWS": backward.ROWS,
        "COLUMNS": backward.SUMMED_COLUMNS,
        "DEPTH": backward.DEPTH,
    }
    outputs = {
        "ROWS": forward.ROWS,
        "COLUMNS": forward.COLUMNS,
        "STEPS": forward.STEPS,
        "RANKS": forward.RANKS,
    }
    kernels = [
        (
            forward._add_and_scale,
            {"bias": None, "UPDATE": True, "NORM": True, "BIAS": False, **outputs},
            4,
        ),
        (
            backward._scale_and_sum,
            {"bias": None, "x": None, "W": None, "h": None, "B": None, "BIAS": False, **tile},
            4,
        ),
        (backward._scale_and_sum, {"bias": None, "BIAS": False, **alone}, 4),
        (backward._finish, {"SMALLEST": 0.01, "SOURCE": True, **summed}, 4),
    ]
    tiles = {name: getattr(tiled_norm, name) for name in ("TILE", "DEPTH", "STAGES", "GROUP")}
    parts = {"LANES": content_hash.LANES, "STEPS": content_hash.STEPS}
    kernels += [
        (content_hash._look_and_split, {"CHECK": True, **parts}, 4),
        (tiled_norm._sum_squares, {"CHECK": True, "SUMMED": tiled_norm.SUMMED_TILES, **tiles}, 8),
    ]
    for rank in (16, 32):
        parts = norm.configuration(rank, is_large=is_large)
        kernels.append((norm._dora_row_norm, {"ROWS": norm.ROWS, "RANKS": rank, **parts}, 8))
        parts |= {"ROWS": norm.ROWS, "RANKS": rank, "FIELDS": 7}
        kernels.append((norm._dora_row_norms, parts, 8))
    for kernel, constants, warps in kernels:
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types[name] for name in names}
        values = {(names.index(name),): value for name, value in constants.items()}
        aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name in types}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert 0 < compiled.metadata.shared <= SHARED_MEMORY[capability], kernel


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_norms_of_many_layers_are_read_as_widely_as_those_of_one():
    """Addresses from a table are known to be aligned: as many copies, of 16 bytes, and products."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from doratune.engine.triton import norm

    types = {"W": "*bf16", "A": "*fp32", "B": "*fp32", "norm": "*fp32", "norms": "*fp32", "scalings": "*fp32"}
    types |= {"matrix_of": "*i32", "table": "*i64", "scaling": "fp32"}
    types |= dict.fromkeys(("d_out", "d_in", "rank"), "i32")
    constants = {"ROWS": norm.ROWS, "RANKS": 32, "FIELDS": 7, **norm.configuration(32, is_large=True)}
    found = []
    for kernel in (norm._dora_row_norm, norm._dora_row_norms):
        names = kernel.arg_names
        source = ASTSource(
            fn=kernel,
            signature={name: "constexpr" if name in constants else types[name] for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items() if name in names},
            attrs={(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name in types},
        )
        compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        code = compiled.asm["ptx"]
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (\w+)", code)
        found.append((copies, code.count("mma.sync"), compiled.metadata.shared))
    assert found[0] == found[1]
    assert set(found[0][0]) == {"0x10"}


def test_without_a_gpu_the_kernels_are_not_used():
    assert not taken(torch.ones(2)) and not taken(torch.ones(2, device="meta"))


@pytest.mark.parametrize(
    ("size", "block"), [(0, 16), (1, 16), (16, 16), (17, 32), (64, 64), (65, 64), (4096, 64)]
)
def test_blocks(size: int, block: int) -> None:
    assert block_of(size, at_most=64) == block
    assert (blocks(size, block) - 1) * block < size <= blocks(size, block) * block
