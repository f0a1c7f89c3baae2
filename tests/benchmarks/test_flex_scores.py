from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cryorbit.analysis.fsc_area import PERFECT
from cryorbit.benchmarks.flex_bounds import chance_areas, consensus_map, oracle_maps, recovered_share
from cryorbit.benchmarks.flex_scores import image_fsc_areas, latent_score, sample_rows, state_distance
from cryorbit.benchmarks.flex_tasks import FlexData, FlexTask, flex_data
from cryorbit.errors import BadInput

SMALL = FlexTask(images=400, box=20, snr=1.0)


@pytest.fixture(scope="module")
def lobes() -> FlexData:
    return flex_data("lobes", SMALL)


def as_kind(data: FlexData, kind: str, coordinate: torch.Tensor | None) -> FlexData:
    """The same images, told as another kind of set: the scores of latents look at the truth alone."""
    group = torch.zeros(len(data.maps), dtype=torch.long)
    return replace(
        data, kind=kind, coordinate=coordinate, group=group, state=torch.arange(len(data)) % len(group)
    )


def test_true_maps_are_perfect_and_another_states_are_not(lobes):
    """Decoding the true map gives 0.5 for every image, plain and masked; the map of one state for all gives less."""
    rows = sample_rows(lobes, 20)
    perfect = image_fsc_areas(lobes, lambda part: lobes.maps[lobes.state[part]], rows)
    for areas in (perfect.plain, perfect.masked):
        torch.testing.assert_close(areas, torch.full_like(areas, PERFECT), rtol=1e-5, atol=0)
    other = image_fsc_areas(lobes, lambda part: lobes.maps[torch.zeros_like(part)], rows)
    own = lobes.state[rows] == 0
    assert other.plain[~own].max().item() < 0.99 * PERFECT
    torch.testing.assert_close(other.plain[own], perfect.plain[own])


def test_sampled_images_are_spread_over_the_states(lobes):
    """As many of each state as its images allow; the seed decides which; no image twice."""
    rows = sample_rows(lobes, 40)
    assert torch.bincount(lobes.state[rows]).tolist() == [10, 10, 10, 10]
    assert len(rows.unique()) == 40
    assert torch.equal(rows, sample_rows(lobes, 40))
    assert not torch.equal(rows, sample_rows(lobes, 40, seed=1))
    assert torch.equal(sample_rows(lobes, 400), torch.arange(400))
    with pytest.raises(BadInput, match="at least one"):
        sample_rows(lobes, 0)


@pytest.mark.parametrize("box", [20, 21])
def test_the_oracle_lies_above_chance(box):
    """Told the states it makes better maps than one consensus map; and without noise nearly perfect ones."""
    for snr, least in ((1.0, 0.0), (math.inf, 0.95)):
        data = flex_data("lobes", replace(SMALL, box=box, snr=snr))
        rows = sample_rows(data, 20)
        chance, oracle = chance_areas(data, rows), oracle_maps(data).areas(data, rows)
        assert oracle.mean > chance.mean
        # without noise what is left is the interpolation of few projections
        assert oracle.mean > least * PERFECT
        assert oracle.mean <= PERFECT


def test_wrong_poses_cost_area(lobes):
    """Chance from poses that are off by 20 degrees and 1 pixel is worse than from the true ones."""
    wrong = flex_data("lobes", replace(SMALL, pose_error_deg=20.0, pose_error_px=1.0))
    rows = sample_rows(wrong, 20)
    with_truth = chance_areas(wrong, rows, stack=wrong.with_truth())
    assert chance_areas(wrong, rows).mean < 0.99 * with_truth.mean
    torch.testing.assert_close(
        consensus_map(wrong, stack=wrong.with_truth()).values, consensus_map(lobes).values, rtol=0, atol=1e-4
    )
    with pytest.raises(BadInput, match="no poses"):
        consensus_map(wrong, stack=replace(wrong.stack, pose=None))


def test_scores_of_latents_by_kind(lobes):
    """Latents that are the truth, in a frame of their own, score 1; latents of noise score chance."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    small = 0.02 * noise
    angle = torch.arange(4) * (math.pi / 2)
    ring = torch.stack((angle.cos(), -angle.sin(), torch.zeros(4)), dim=1)
    line = torch.linspace(0, 1, 4)[:, None] * torch.tensor([-1.0, 2.0, 0.5])
    state = torch.arange(400) % 4
    cases = (
        (lobes, 10.0 * torch.eye(4)[lobes.state][:, :3], "adjusted_rand_index", 0.99),
        # ranks spread each of four angles over a quarter of the circle, which leaves sin(x) / x of pi / 4: 0.90
        (as_kind(lobes, "circle", angle), 3.0 * ring[state], "circular_correlation", 0.85),
        (as_kind(lobes, "path", torch.linspace(0, 1, 4)), 3.0 * line[state], "spearman", 0.85),
    )
    for data, latents, name, least in cases:
        found = latent_score(data, latents + small)
        assert found.name == name
        assert found.value > least
        assert latent_score(data, noise).value < 0.2
    with pytest.raises(BadInput, match="one per image"):
        latent_score(lobes, noise[:7])


def test_distances_of_states(lobes):
    """Around a circle the short way; nothing between compositions but the state itself."""
    angle = torch.tensor([0.0, 0.1, math.pi, 6.0])
    around = state_distance(as_kind(lobes, "circle", angle))
    assert abs(around[0, 3].item() - (2 * math.pi - 6.0)) < 1e-5
    assert abs(around[1, 2].item() - (math.pi - 0.1)) < 1e-5
    apart = state_distance(lobes)
    assert torch.isinf(apart[~torch.eye(4, dtype=torch.bool)]).all()
    assert torch.equal(apart.diagonal(), torch.zeros(4, dtype=torch.float64))
    moved = replace(lobes.atoms[0], position_A=lobes.atoms[0].position_A + torch.tensor([3.0, 4.0, 0.0]))
    cloud = replace(as_kind(lobes, "cloud", None), atoms=(lobes.atoms[0], moved, moved, moved))
    assert abs(state_distance(cloud)[0, 1].item() - 5.0) < 1e-3


def test_share_of_the_way_from_chance_to_the_oracle():
    """0 at chance, 1 at the oracle, above it beyond."""
    assert recovered_share(0.3, chance=0.3, oracle=0.4) == 0.0
    assert recovered_share(0.4, chance=0.3, oracle=0.4) == 1.0
    assert recovered_share(0.45, chance=0.3, oracle=0.4) > 1.0
    assert math.isnan(recovered_share(0.3, chance=0.3, oracle=0.3))


@pytest.mark.parametrize("kind", ["path", "classes"])
def test_latents_are_measured_in_standard_errors(kind):
    """A long coordinate that is all noise hides the true one; told its precision, the score does not see it.

    The noise has five standard deviations of the prior's normal distribution, the truth one: 0.5 is far from both scores.
    """
    data = as_kind(flex_data("lobes", SMALL), kind, torch.linspace(0, 1, 4) if kind == "path" else None)
    generator = torch.Generator().manual_seed(1)
    truth = data.state[:, None].double() - 1.5
    blur = 0.05 * torch.randn(len(data), 1, generator=generator, dtype=torch.float64)
    latents = torch.cat((truth + blur, 5 * torch.randn(len(data), 2, generator=generator).double()), 1)
    precision = torch.diag(torch.tensor([400.0, 1e-4, 1e-4]).double()).expand(len(data), -1, -1)
    assert latent_score(data, latents).value < 0.5
    assert latent_score(data, latents, precision).value > 0.9
