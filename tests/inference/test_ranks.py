"""Several processes give what one gives: a real run of two under torchrun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cryorbit.geometry.rotations import geodesic_angle
from cryorbit.inference.ranks import Ranks, even_count
from cryorbit.io.checkpoint import load_state
from several_processes import dealt, results

SAME_MAP = 1e-5
"""Relative difference of maps: sums of a few hundred float32 terms in another order."""
SAME_ANGLE_DEG, SAME_SHIFT_A = 0.01, 0.01
"""Median difference of poses; another rounding may send a doubtful image to another optimum, not the typical one."""


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    """Results of both processes."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).parents[1] / "several_processes.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, script, folder], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_state(folder / f"rank{i}.safetensors")[0] for i in (0, 1)]


@pytest.fixture(scope="module")
def one() -> dict[str, torch.Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = results(None)
    torch.set_num_threads(before)
    return out


def test_maps_of_known_poses_are_the_same(one, two):
    for name in ("reconstruct half1", "reconstruct half2"):
        assert float((two[0][name] - one[name]).norm() / one[name].norm()) < SAME_MAP


@pytest.mark.parametrize("run", ["refine", "search", "abinitio"])
def test_poses_are_the_same(one, two, run):
    angle = geodesic_angle(two[0][f"{run} rotation"].double(), one[f"{run} rotation"].double())
    shift = (two[0][f"{run} shift"] - one[f"{run} shift"]).norm(dim=1)
    assert float(torch.rad2deg(angle).median()) < SAME_ANGLE_DEG
    assert float(shift.median()) < SAME_SHIFT_A


def test_a_run_of_two_goes_on_from_its_middle_to_the_same_poses(two):
    for name in ("rotation", "shift"):
        assert torch.equal(two[0][f"resumed {name}"], two[0][f"search {name}"])


def test_every_process_ends_with_the_same_bits(two):
    assert all(torch.equal(two[0][name], two[1][name]) for name in two[0])


@pytest.mark.parametrize("run", ["whole", "stopped"])
def test_rows_and_sums_do_not_depend_on_who_was_dealt_them(two, run):
    """Squares of whole numbers: exact in any order. Rows that nobody was dealt keep what they had."""
    column, total = dealt(Ranks(), stop_after=None if run == "whole" else 2)
    for found in two:
        assert torch.equal(found[f"dealt {run} column"], column)
        assert torch.equal(found[f"dealt {run} total"], total)
    assert column[23:].tolist() == [-1.0, -1.0]


def test_every_process_gets_as_many_blocks():
    for size in (1, 2, 3, 7):
        for count in (1, 5, 12):
            even = even_count(count, Ranks(0, size))
            assert even % size == 0
            assert count <= even < count + size
