"""Each row once an epoch, for every batch, micro-batch and number of processes."""

from __future__ import annotations

import itertools
import random

import pytest

from doratune.training.batches import RowBatches, share_out

SPLITS = [(16, 1), (1, 16), (4, 4), (3, 2), (1, 1)]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("micro", "accumulation"), SPLITS)
@pytest.mark.parametrize("rows", [1, 5, 16, 17, 31, 97])
def test_every_row_once_an_epoch(rows: int, micro: int, accumulation: int, processes: int) -> None:
    drawn = random.Random(rows)
    lengths = [drawn.randint(3, 90) for _ in range(rows)]
    parts = [
        RowBatches(lengths, micro=micro, accumulation=accumulation, processes=processes, process=process)
        for process in range(processes)
    ]
    batch = micro * accumulation * processes
    for epoch in range(2):
        for part in parts:
            part.set_epoch(epoch)
        micro_batches = [list(part) for part in parts]
        assert {len(one) for one in micro_batches} == {len(parts[0])}, "no process waits for another"
        assert all(one for one in itertools.chain(*micro_batches)), "none is empty"
        seen = [row for row in itertools.chain(*itertools.chain(*micro_batches)) if row < rows]
        assert sorted(seen) == list(range(rows))
        steps = -(-rows // batch)
        for step in range(steps):
            of_step = {
                row
                for one in micro_batches
                for part in one[step * accumulation : (step + 1) * accumulation]
                for row in part
            } - {rows}
            expected = parts[0].rows(epoch * steps + step)
            assert of_step == set(expected) and len(expected) <= batch
            assert parts[0].tokens(epoch * steps + step) == sum(lengths[row] for row in expected)
        blanks = sum(row == rows for row in itertools.chain(*itertools.chain(*micro_batches)))
        assert bool(blanks) == parts[0].has_blanks and blanks < processes
    epochs = [[parts[0].rows(epoch * steps + step) for step in range(steps)] for epoch in range(2)]
    assert epochs[0] != epochs[1] or rows < 16, "another order in another epoch"


def test_the_rows_of_a_step_do_not_depend_on_how_it_is_split() -> None:
    lengths = [5 + row % 7 for row in range(17)]
    whole = RowBatches(lengths, micro=16, accumulation=1)
    for micro, accumulation, processes in ((1, 16, 1), (4, 4, 1), (2, 4, 2)):
        split = RowBatches(lengths, micro=micro, accumulation=accumulation, processes=processes)
        assert [split.rows(step) for step in range(4)] == [whole.rows(step) for step in range(4)]


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_the_costliest_micro_batch_costs_as_little_as_neighbours_allow(groups: int) -> None:
    drawn = random.Random(groups)
    for _ in range(20):
        lengths = [drawn.randint(1, 40) for _ in range(drawn.randint(groups, 9))]
        ordered = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
        shared = share_out(lengths, range(len(lengths)), groups)
        assert [row for group in shared for row in group] == ordered
        assert len(shared) == groups and all(shared)

        def costliest(
            cuts: tuple[int, ...], ordered: list[int] = ordered, lengths: list[int] = lengths
        ) -> int:
            edges = itertools.pairwise([0, *cuts, len(ordered)])
            return max((end - start) * lengths[ordered[start]] for start, end in edges)

        all_cuts = itertools.combinations(range(1, len(lengths)), groups - 1)
        chosen = tuple(itertools.accumulate(map(len, shared[:-1])))
        assert costliest(chosen) == min(map(costliest, all_cuts))
