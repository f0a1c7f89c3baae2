"""What the two layouts of sums cost, and any points against planes: the reasons given in `physics.interpolation`.

python -m pytest tests/speed/test_lattice.py -o addopts="" -s
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cryorbit.physics.interpolation import gather, gather_with_gradient, scatter
from cryorbit.physics.lattice import add_points, half_plane, read_points
from physics_models import uniform_rotations

REPEATS = 7
SLACK = 1.15
"""The machine is shared: what is said to be faster must not be slower by more than this."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, so that a busy machine disturbs all methods alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _nanoseconds(steps: dict[str, Callable[[], object]], points: int) -> dict[str, float]:
    """Processor time per point of each step, in turns; the first turn does not count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(REPEATS + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn:
                taken[name].append((time.process_time() - start) / points * 1e9)
    return {name: statistics.median(times) for name, times in taken.items()}


@pytest.mark.parametrize(("box", "images"), [(32, 256), (64, 64), (128, 32)])
def test_each_layout_is_the_faster_one_where_it_is_used(box: int, images: int):
    """Planes beat any points; three real planes beat a complex one with its weight."""
    generator = torch.Generator().manual_seed(0)
    p = 2 * box
    half = torch.complex(*torch.randn(2, p, p, box + 1, generator=generator))
    plane = half_plane(box, step=2, radius=(box - 1 - 1e-3) / 2)
    rotation = uniform_rotations(images).float()
    at = (plane.kx[:, None] * rotation[:, None, 0] + plane.ky[:, None] * rotation[:, None, 1]).contiguous()
    rows = torch.randn(3, *at.shape[:-1], generator=generator)
    values = torch.complex(rows[0], rows[1])
    sums, weight = torch.zeros(3, p, p, box + 1), torch.zeros(p, p, box + 1)
    wants: Tensor = rotation.clone().requires_grad_()
    steps: dict[str, Callable[[], object]] = {
        "gather": lambda: gather(half, at),
        "read_points": lambda: read_points(half, rotation, plane),
        "gather, slopes": lambda: gather_with_gradient(half, at),
        "read_points, slopes": lambda: read_points(half, wants, plane),
        "scatter": lambda: scatter(sums, at, rows),
        "add_points": lambda: add_points(half, weight, rotation, plane, values, rows[2]),
    }
    found = _nanoseconds(steps, at.shape[0] * at.shape[1])
    print(f"\nbox {box}, ns per point: " + ", ".join(f"{name} {ns:.0f}" for name, ns in found.items()))
    assert found["read_points"] < SLACK * found["gather"]
    assert found["scatter"] < SLACK * found["add_points"]
