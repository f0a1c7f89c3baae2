from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.inference.kernel_volume import SHARES, KernelReadout
from cryorbit.inference.linear_flex import LinearSettings, fit_linear
from linear_stacks import PIXEL_A, LinearStack, linear_stack

SETTINGS = LinearSettings(rank=2, iterations=3, stages=2, particle_diameter_A=17 * PIXEL_A)


@lru_cache
def example(box: int) -> tuple[LinearStack, KernelReadout]:
    data = linear_stack(800, box=box, noise=1.0)
    *_, last = fit_linear(data.stack, SETTINGS)
    return data, KernelReadout(data.stack, SETTINGS, last.result)


def away_from(truth: torch.Tensor, found: torch.Tensor) -> float:
    """1 - correlation of two maps less their means."""
    return 1 - float(torch.corrcoef(torch.stack((truth.flatten(), found.flatten())))[0, 1])


@pytest.mark.parametrize("box", [24, 25])
def test_images_near_a_latent_show_its_volume(box):
    """Where a volume is far from the mean, the map made at its latent is nearer to it than the mean map is."""
    data, readout = example(box)
    for row in data.latent.norm(dim=1).argsort(descending=True)[[5, 10]]:
        truth = torch.tensordot(torch.cat((torch.ones(1), data.latent[row])), data.maps, dims=1)
        found = readout.volume(readout.model.latent[row])
        # Half of the mean's distance is far from chance and from what noise allows: measured 0.18 to 0.22 of it.
        assert away_from(truth, found.map.values) < 0.5 * away_from(truth, readout.model.mean.values)


def test_finer_shells_are_made_of_no_fewer_images():
    _, readout = example(24)
    share = readout.volume(torch.zeros(2)).share
    assert share.shape == (13,)
    assert bool((share.diff() >= 0).all())
    assert set(share.tolist()) <= set(torch.tensor(SHARES).tolist())


def test_nested_sums_hold_every_image_once():
    """The widest neighbourhood short of all, and what is left, make up all images."""
    _, readout = example(24)
    distance = readout.model.squared_distance(torch.zeros(2))
    sums = readout._nested(0, distance)
    rows = readout.rows[0][distance[readout.rows[0]].argsort()]
    rest = readout._insert(sums[-2], rows[128:])  # 0.32 of 400
    whole = sums[-1].denominator
    torch.testing.assert_close(rest.denominator, whole, atol=1e-4 * float(whole.max()), rtol=0)


def test_another_stack_is_refused():
    data, readout = example(24)
    with pytest.raises(BadInput, match="the stack that the model was fitted to"):
        KernelReadout(data.stack.select(torch.arange(10)), replace(SETTINGS), readout.model)
