from __future__ import annotations

import pytest
import torch

from cryorbit.inference.engine import Workers, workers
from cryorbit.inference.linear_em import Problem, expect, maximise, principal
from cryorbit.inference.linear_images import LinearImages
from cryorbit.inference.observations import observe
from cryorbit.physics.map_family import MapLattice
from linear_stacks import PIXEL_A, linear_stack

ALONE = Workers(None, 1)
SLOPE = 1e-2  # relative, of a central difference in float32; measured 1e-3
ROUND_OFF = 1e-6  # of the gain: a sum of float32 products, each image's own sums in float64


def example(box: int, n: int = 60) -> tuple[LinearImages, torch.Tensor]:
    """Images, and three maps that are neither right nor small."""
    data = linear_stack(n, box=box)
    g = torch.Generator().manual_seed(1)
    observed = observe(data.stack, particle_diameter_A=0.7 * box * PIXEL_A, generator=g)
    images = LinearImages(observed, radius=box // 2 - 1, voxels=box, lattice=MapLattice(box))
    start = data.maps / data.maps[0].std() + 0.3 * torch.randn(data.maps.shape, generator=g)
    return images, start


@pytest.mark.parametrize("box", [16, 17])
def test_the_gradient_is_that_of_the_marginal_likelihood(box):
    """Fisher's identity: the expected gradient of what is complete is the gradient of what is observed."""
    images, maps = example(box)
    found = expect(images, maps, ALONE)
    assert found.gradient is not None
    gradient = images.lattice.maps(found.gradient)
    along = gradient / gradient.norm() * maps.norm() * 1e-2
    up, down = (expect(images, maps + s * along, ALONE, with_gradient=False).gain for s in (1, -1))
    expected = 2 * float((gradient.double() * along.double()).sum())
    assert abs((up - down) / expected - 1) < SLOPE


@pytest.mark.parametrize("box", [16, 17])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_no_step_of_maximisation_makes_the_images_less_likely(box, scale):
    """The law of E-M for the steps themselves, far from the solution and near it.

    With few images, orientations and latents go together by chance and a step may go too far: the run then halves it.
    """
    images, maps = example(box, 400)
    problem = Problem(images.lattice, images.density(), torch.ones(box, box, box), box // 2 - 1)
    maps = scale * maps
    found = expect(images, maps, ALONE)
    for _ in range(6):
        maps = maximise(problem, maps, found, None, ALONE)
        after = expect(images, maps, ALONE)
        assert after.gain >= found.gain - ROUND_OFF * abs(found.gain)
        found = after


def test_a_turn_of_the_latents_changes_nothing_observed():
    """Components made orthogonal: the same likelihood, and each image's volume stays."""
    images, maps = example(16)
    before = expect(images, maps, ALONE, with_gradient=False)
    turned, turn = principal(maps)
    after = expect(images, turned, ALONE, with_gradient=False)
    assert abs(after.gain - before.gain) < 1e-5 * abs(before.gain)
    torch.testing.assert_close(after.mean, before.mean @ turn.T.float(), atol=1e-3, rtol=1e-3)
    gram = turned[1:].flatten(1) @ turned[1:].flatten(1).T
    assert float(gram[0, 1].abs()) < 1e-5 * float(gram[1, 1])
    assert float(gram[0, 0]) >= float(gram[1, 1])


def test_threads_do_not_change_the_sums():
    images, maps = example(16)
    images.batches = torch.arange(60).split(17)
    with workers(2) as team:
        several = expect(images, maps, team)
    alone = expect(images, maps, ALONE)
    assert several.gain == alone.gain
    assert torch.equal(several.gradient, alone.gradient)
