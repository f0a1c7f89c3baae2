from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cryorbit.analysis.latent_scores import circular_correlation, rank_correlation
from cryorbit.analysis.latents import (
    circular_coordinate,
    diffusion_map,
    graph_path,
    k_means,
    latent_axes,
    nearest_particles,
    neighbour_graph,
    path_coordinate,
)
from cryorbit.errors import BadInput


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_turn(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=seeded(9), dtype=torch.float64)).Q


def test_axes_give_the_points_back_and_do_not_correlate():
    """Mean + scores @ axes are the points; the scores' covariance is diag(variance), largest first."""
    points = torch.randn(200, 5, generator=seeded(), dtype=torch.float64) @ torch.randn(
        5, 5, generator=seeded(1), dtype=torch.float64
    )
    pca = latent_axes(points)
    scores = pca.scores(points)
    torch.testing.assert_close(pca.latents(scores), points, rtol=0, atol=1e-10)
    torch.testing.assert_close(scores.T.cov(), torch.diag(pca.variance), rtol=0, atol=1e-10)
    assert bool((pca.variance.diff() <= 0).all())
    assert latent_axes(points, components=2).axes.shape == (2, 5)


def test_k_means_finds_clusters_that_lie_apart():
    """Points around far centres are labelled by their centre, and the centres are the means of their points."""
    truth = torch.arange(4).repeat_interleave(50)
    points = 100.0 * torch.eye(4)[truth] + torch.randn(200, 4, generator=seeded())
    found = k_means(points, 4)
    for number in range(4):
        own = found.label[truth == number]
        assert bool((own == own[0]).all())
        torch.testing.assert_close(found.centre[own[0]], points[truth == number].double().mean(0))
    assert torch.unique(found.label).tolist() == [0, 1, 2, 3]
    assert torch.equal(k_means(points, 4).label, found.label)


def test_k_means_of_points_that_coincide():
    """As many clusters as points leaves no distance; equal points do not stop it."""
    assert k_means(torch.zeros(6, 2), 3).label.shape == (6,)
    points = torch.randn(5, 2, generator=seeded())
    found = k_means(points, 5)
    torch.testing.assert_close(found.centre[found.label], points.double())


def test_nearest_particles_are_the_nearest():
    """Against all distances."""
    points = torch.randn(80, 3, generator=seeded())
    asked = torch.randn(7, 3, generator=seeded(1))
    assert torch.equal(nearest_particles(points, asked), torch.cdist(asked, points).argmin(1))


def test_graph_is_symmetric_in_one_piece_and_holds_all_nearest():
    """Two far clouds are bridged; every point's nearest neighbour is an edge, of the right length."""
    points = torch.randn(60, 3, generator=seeded(), dtype=torch.float64)
    points[30:] += 100.0
    graph = neighbour_graph(points, k=4).toarray()
    assert np.array_equal(graph, graph.T)
    distance = torch.cdist(points, points).fill_diagonal_(math.inf)
    nearest = distance.argmin(1)
    lengths = torch.from_numpy(graph)[torch.arange(60), nearest]
    torch.testing.assert_close(lengths, distance.amin(1), rtol=1e-6, atol=0)
    bridges = graph[:30, 30:][graph[:30, 30:] > 0]
    assert bridges.size == 1
    torch.testing.assert_close(bridges[0].item(), distance[:30, 30:].min().item(), rtol=1e-6, atol=0)


def test_path_through_the_graph_follows_the_ring():
    """From one side of a ring to the other no step leaves it, though the straight line would."""
    angle = torch.arange(100) * (2 * math.pi / 100)
    ring = torch.stack((angle.cos(), angle.sin()), dim=1)
    path = graph_path(neighbour_graph(ring, k=4), 0, 40)
    assert path[[0, -1]].tolist() == [0, 40]
    assert bool((path.diff() > 0).all())
    assert path.diff().max().item() <= 2
    assert graph_path(neighbour_graph(ring, k=4), 7, 7).tolist() == [7]


@pytest.mark.parametrize("n", [500, 2500])
def test_a_ring_in_many_dimensions_gives_its_angle(n):
    """A bent, turned, noisy and unevenly visited ring: its angle comes back, with landmarks (2,500) as without."""
    angle = 2 * math.pi * torch.rand(n, generator=seeded(), dtype=torch.float64)
    angle = angle + 0.5 * angle.sin()
    ring = torch.zeros(n, 6, dtype=torch.float64)
    ring[:, 0], ring[:, 1], ring[:, 2] = angle.cos(), angle.sin(), 0.4 * (3 * angle).sin()
    points = (ring + 0.02 * torch.randn(n, 6, generator=seeded(1))) @ random_turn(6)
    found = circular_coordinate(diffusion_map(points))
    rank = angle.argsort().argsort() * (2 * math.pi / n)
    # 0.02 of noise on a radius of 1 turns an angle by 1 degree, and the ranks by as much
    assert circular_correlation(found, rank) > 0.99
    assert 0 <= found.min().item()
    assert found.max().item() < 2 * math.pi


@pytest.mark.parametrize("n", [500, 2500])
def test_a_rolled_path_gives_its_place(n):
    """A roll of one and a half turns: the place along it, where the first principal axis would fold it."""
    place = torch.rand(n, generator=seeded(), dtype=torch.float64)
    bend = 3 * math.pi * place
    points = torch.stack(
        (bend.cos() * (1 + place), bend.sin() * (1 + place), torch.zeros(n)), dim=1
    ) @ random_turn(3)
    found = path_coordinate(diffusion_map(points, components=1)[:, 0])
    assert rank_correlation(found, place) > 0.99
    straight = latent_axes(points).scores(points)[:, 0]
    assert rank_correlation(straight, place) < 0.9


def test_coordinates_are_made_uniform():
    """Ranks: every place is taken once, whatever the spacing of the input."""
    values = torch.randn(50, generator=seeded()).exp()
    place = path_coordinate(values)
    torch.testing.assert_close(place.sort().values, torch.linspace(0, 1, 50, dtype=torch.float64))
    assert torch.equal(place.argsort(), values.argsort())


def test_what_cannot_be_mapped_is_refused():
    """Too few points, points that are not finite, latents that are all the same, ends that are not in the graph."""
    with pytest.raises(BadInput, match="finite"):
        latent_axes(torch.full((3, 2), math.nan))
    with pytest.raises(BadInput, match="clusters"):
        k_means(torch.zeros(3, 2), 4)
    with pytest.raises(BadInput, match="at least 4 points"):
        diffusion_map(torch.zeros(3, 2))
    with pytest.raises(BadInput, match="one and the same"):
        diffusion_map(torch.zeros(2000, 2))
    with pytest.raises(BadInput, match="two points"):
        neighbour_graph(torch.zeros(1, 2))
    with pytest.raises(BadInput, match="Count from 0 to 9"):
        graph_path(neighbour_graph(torch.randn(10, 2, generator=seeded())), 0, 10)
