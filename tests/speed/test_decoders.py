"""Seconds per image, forward and backward, of FourierNet as published, FourierNet on half a disk, and the lattice.

python -m pytest tests/speed/test_decoders.py -o addopts="" -s
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cryorbit.inference.refine import half_disk
from cryorbit.models.decoder import make_decoder
from cryorbit.models.siren_volume import SirenVolume, SirenVolumeSettings
from physics_models import uniform_rotations

REPEATS = 3
HALF_DISK = 1.8
"""At least so much faster than the whole plane; the points are 2.5 times fewer."""
LATTICE = 50.0
"""At least so much faster than FourierNet on half a disk."""
IMAGES = {32: {"plane": 2, "disk": 2, "lattice": 256}, 64: {"plane": 1, "disk": 1, "lattice": 128}}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, so that a busy machine disturbs all methods alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def published_slices(net: SirenVolume, rotation: Tensor, box: int) -> Tensor:
    """Every point of the plane through both networks, no mates."""
    k = torch.arange(box) - box // 2
    y, x = torch.meshgrid(k, k, indexing="ij")
    points = torch.stack((x.flatten(), y.flatten()), 1) / (box / 2)
    at = points @ rotation[:, :2]
    return torch.view_as_complex(torch.exp(net.envelope(at)) * net.modulant(at))


def _seconds_per_image(step: Callable[[Tensor], Tensor], images: int, weights: list[Tensor]) -> float:
    """Processor time of values, and of gradients to weights and rotations."""
    rotation = uniform_rotations(images).float().requires_grad_()
    taken = []
    for turn in range(REPEATS + 1):
        start = time.process_time()
        loss = torch.view_as_real(step(rotation)).square().sum()
        torch.autograd.grad(loss, [rotation, *weights])
        if turn:
            taken.append(time.process_time() - start)
    return statistics.median(taken) / images


@pytest.mark.parametrize("box", [32, 64])
def test_half_a_disk_and_the_lattice_are_faster(box: int):
    """Weights and rotations both want gradients; all methods represent the same frequencies."""
    net = SirenVolume(SirenVolumeSettings(box=box), generator=torch.Generator().manual_seed(0))
    lattice = make_decoder("fourier", box=box, generator=torch.Generator().manual_seed(0))
    points, images = half_disk(lattice.reach_px), IMAGES[box]
    weights = list(net.parameters())
    plane = _seconds_per_image(lambda r: published_slices(net, r, box), images["plane"], weights)
    disk = _seconds_per_image(lambda r: net.slices(r, points), images["disk"], weights)
    explicit = _seconds_per_image(
        lambda r: lattice.slices(r, points), images["lattice"], list(lattice.parameters())
    )
    print(
        f"\nbox {box}: FourierNet whole plane {1e3 * plane:.0f} ms/image, half disk {1e3 * disk:.0f} ms/image, "
        f"lattice {1e3 * explicit:.2f} ms/image ({images['lattice']} images)"
    )
    assert plane / disk > HALF_DISK
    assert disk / explicit > LATTICE
