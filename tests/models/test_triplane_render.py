"""Two ways to project tri-planes, against each other and against a density whose projections are known."""

import math

import pytest
import torch

from cryorbit.data import Pose
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import pixel_grid
from cryorbit.geometry.rotations import random_rotations
from cryorbit.models.triplane import AXES, TriplaneDecoder
from cryorbit.models.triplane_render import line_integrals, project_triplanes

SLICE = 0.02
"""Relative error of `physics.project` in mode "exact" (bench P7's bar); measured 0.009 on these blobs."""
RAY = 2e-4
"""Relative error of rays: the spline between pixels of smooth planes; measured 5e-5."""
STRATIFIED = 0.02
"""Of rays whose samples are anywhere in their steps: one draw; measured 0.011."""
WIDTH_PX = 2.0


def centres(count: int, n: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return (torch.rand(count, 3, generator=g, dtype=torch.float64) - 0.5) * n / 3


def blobs(n: int, count: int = 4) -> tuple[TriplaneDecoder, torch.Tensor]:
    """Tri-planes of `count` round Gaussians, one per channel, exactly: the product of three planes, read linearly.

    exp(-x^2 / 4 w^2 - y^2 / 4 w^2) and so on multiply to exp(-r^2 / 2 w^2), and silu(a) - silu(-a) = a.
    """
    place = torch.arange(n, dtype=torch.float64) - n // 2
    centre = centres(count, n)
    planes = torch.stack(
        [
            torch.stack(
                [
                    torch.exp(-((place[:, None] - c[v]) ** 2 + (place - c[u]) ** 2) / (4 * WIDTH_PX**2))
                    for c in centre
                ]
            )
            for u, v in AXES
        ]
    )
    decoder = TriplaneDecoder(count, 2 * count).double().requires_grad_(False)
    for weight in decoder.parameters():
        weight.zero_()
    eye = torch.eye(count, dtype=torch.float64)
    decoder.first.weight[:, count:] = torch.cat((eye, -eye))
    decoder.last.weight[0] = torch.cat((torch.ones(count), -torch.ones(count)))
    return decoder, planes


def projected(n: int, rotation: torch.Tensor) -> torch.Tensor:
    """The blobs' line integrals by formula."""
    at = (centres(4, n) @ rotation.mT)[:, :, :2]
    pixels = pixel_grid(n, ndim=2, dtype=torch.float64)
    square = (pixels - at[:, :, None, None]).square().sum(-1)
    return math.sqrt(2 * math.pi) * WIDTH_PX * torch.exp(-square / (2 * WIDTH_PX**2)).sum(1)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("n", [27, 28])
def test_rays_and_slices_see_the_same(n):
    """Both are the projection, in random directions, odd and even: x_lab = rotation @ x_particle, summed along z."""
    decoder, planes = blobs(n)
    rotation = random_rotations(4, generator=torch.Generator().manual_seed(1)).double()
    truth = projected(n, rotation)
    rays = line_integrals(decoder, planes, rotation)
    slices = project_triplanes(
        decoder, planes, Pose(rotation, torch.zeros(4, 2, dtype=torch.float64)), pixel_size_A=1.5
    )
    assert relative(rays, truth) < RAY
    assert relative(slices, truth) < SLICE
    assert relative(rays, slices) < SLICE


def test_samples_anywhere_in_their_steps_say_the_same():
    """Stratified samples: another draw, another sum, each close to the integral."""
    decoder, planes = blobs(20)
    rotation = random_rotations(1, generator=torch.Generator().manual_seed(2)).double()
    truth = projected(20, rotation)
    first, second = (
        line_integrals(decoder, planes, rotation, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    assert not torch.equal(first, second)
    assert relative(first, truth) < STRATIFIED
    assert relative((first + second) / 2, truth) < relative(first, truth)


def test_nothing_lies_outside_the_cube():
    """A constant density: rays along z are as long as the cube, those from the corner view as its chord."""
    decoder, planes = blobs(12)
    decoder.last.weight.zero_()
    decoder.last.bias.fill_(1.0)
    image = line_integrals(decoder, planes, torch.eye(3, dtype=torch.float64)[None])[0]
    torch.testing.assert_close(image, torch.full_like(image, 12.0))


def test_rays_pass_gradients_to_the_planes():
    decoder, planes = blobs(8)
    planes.requires_grad_()
    line_integrals(decoder, planes, torch.eye(3, dtype=torch.float64)[None]).sum().backward()
    assert planes.grad is not None
    assert float(planes.grad.abs().sum()) > 0


def test_coarse_steps_are_refused():
    decoder, planes = blobs(8)
    with pytest.raises(BadInput, match="above 0"):
        line_integrals(decoder, planes, torch.eye(3)[None], step_px=1.0)
