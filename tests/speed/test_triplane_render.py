"""What a projection of tri-planes costs along rays, against one map that is sliced.

python -m pytest tests/speed/test_triplane_render.py -s
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from cryorbit.data import Pose
from cryorbit.geometry.rotations import random_rotations
from cryorbit.models.triplane import TriplaneDecoder
from cryorbit.models.triplane_render import line_integrals, project_triplanes

BOX = 32
VIEWS = (1, 8, 64)
REPEATS = 3
WANTED_RATIO = 10.0
"""At 64 views; queries alone would make 128 (two samples per voxel and view), and slicing costs time of its own."""


def seconds(work: Callable[[], object]) -> float:
    """The fastest of a few runs, after one that does not count."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, so that a busy machine disturbs both alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def test_slices_beat_rays_by_more_the_more_views_there_are():
    """Forward only; 8 features, 32 hidden, the shape that P7 is fitted with."""
    decoder = TriplaneDecoder(8, 32)
    planes = torch.randn(3, 8, BOX, BOX, generator=torch.Generator().manual_seed(0))
    rotations = random_rotations(VIEWS[-1], generator=torch.Generator().manual_seed(1)).float()
    ratio = 0.0
    for views in VIEWS:
        turn = rotations[:views]
        pose = Pose(turn, torch.zeros(views, 2))
        rays = seconds(lambda turn=turn: line_integrals(decoder, planes, turn))
        slices = seconds(lambda pose=pose: project_triplanes(decoder, planes, pose, pixel_size_A=3.0))
        ratio = rays / slices
        print(
            f"\n{views} views of {BOX} px: rays {rays:.3f} s, map and slices {slices:.3f} s, ratio {ratio:.1f}"
        )
    assert ratio > WANTED_RATIO
