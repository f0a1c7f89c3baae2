from __future__ import annotations

import math

import pytest
import torch

from cryorbit.analysis.latent_paths import (
    LatentCloud,
    choose,
    component_ends,
    component_series,
    graph_series,
)
from cryorbit.analysis.latent_units import ErrorUnits
from cryorbit.analysis.latents import neighbour_graph
from cryorbit.errors import BadInput

EXACT = 1e-9  # float64 linear algebra of a few numbers


def cloud(n: int = 400, d: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g).double()
    root = torch.randn(n, d, d, generator=g, dtype=torch.float64)
    return latents, root @ root.mT + torch.eye(d, dtype=torch.float64)


def test_distances_are_in_standard_errors():
    """|y - y'|^2 = (z - z')^T P (z - z') with P the mean precision, and back again."""
    latents, precision = cloud()
    units = ErrorUnits.of(precision)
    y = units.coordinates(latents)
    step = latents[0] - latents[1]
    wanted = step @ precision.mean(0) @ step
    torch.testing.assert_close((y[0] - y[1]).square().sum(), wanted, rtol=EXACT, atol=0)
    torch.testing.assert_close(units.latents(y), latents, rtol=0, atol=EXACT)


def test_the_latents_units_do_not_matter():
    """Latents that a method measures in other units, precisions with them, have the same scores but for signs."""
    latents, precision = cloud()
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    back = torch.linalg.inv(mix)
    other = LatentCloud.of(latents @ mix, back @ precision @ back.T)
    first = LatentCloud.of(latents, precision)
    torch.testing.assert_close(other.axes.variance, first.axes.variance, rtol=1e-8, atol=0)
    torch.testing.assert_close(other.scores().abs(), first.scores().abs(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("component", [0, 1, 2])
def test_a_component_series_lies_on_its_axis_at_the_quantiles(component):
    """Its own score runs evenly from the 5 % to the 95 % quantile, and every other score is 0."""
    latents, precision = cloud()
    made = LatentCloud.of(latents, precision)
    series = component_series(made, component, count=7)
    scores = made.axes.scores(made.units.coordinates(series.latent))
    others = torch.cat((scores[:, :component], scores[:, component + 1 :]), 1)
    torch.testing.assert_close(others, torch.zeros(7, 2, dtype=torch.float64), rtol=0, atol=EXACT)
    own = made.scores()[:, component]
    low, high = own.quantile(0.05), own.quantile(0.95)
    wanted = torch.linspace(float(low), float(high), 7, dtype=torch.float64)
    torch.testing.assert_close(scores[:, component], wanted, rtol=0, atol=EXACT)
    torch.testing.assert_close(series.score, wanted, rtol=0, atol=EXACT)


def test_a_snapped_series_is_made_of_particles():
    """Each latent is that of the particle named, the one nearest to the point on the axis."""
    latents, precision = cloud()
    made = LatentCloud.of(latents, precision)
    line, snapped = (component_series(made, 0, snap=s) for s in (False, True))
    assert snapped.particle is not None
    torch.testing.assert_close(snapped.latent, latents[snapped.particle], rtol=0, atol=EXACT)
    points = made.units.coordinates(line.latent)
    nearest = torch.cdist(points, made.points).argmin(1)
    assert torch.equal(snapped.particle, nearest)
    torch.testing.assert_close(line.off_data, torch.cdist(points, made.points).min(1).values)
    assert float(snapped.off_data.max()) < EXACT


def test_the_straight_line_leaves_a_ring_and_the_path_does_not():
    """Through the middle of a ring there are no particles, as `off_data` tells; the graph goes around."""
    angle = 2 * math.pi * torch.arange(300, dtype=torch.float64) / 300
    ring = torch.stack((2 * angle.cos(), angle.sin()), 1)
    made = LatentCloud.of(ring, 25 * torch.eye(2, dtype=torch.float64).expand(300, 2, 2))
    line = component_series(made, 0, count=9)
    assert float(line.off_data[4]) == pytest.approx(5.0, rel=1e-3)  # one unit is five standard errors
    start, end = component_ends(made, 0)
    assert abs(math.cos(angle[start])) > 0.9
    series = graph_series(made, neighbour_graph(made.points), start, end, count=9)
    assert series.particle is not None
    assert int(series.particle[0]) == start
    assert int(series.particle[-1]) == end
    assert float(series.off_data.max()) == 0
    assert bool((series.score.diff() > 0).all())
    # half of the ring, each step less than a fifth of it
    assert float((series.latent[1:] - series.latent[:-1]).norm(dim=1).max()) < 0.2 * 9.69


def test_selections():
    columns = {"pc1": torch.tensor([-1.0, 0.5, 2.0, 3.0]), "cluster": torch.tensor([1, 1, 2, 2])}
    assert choose("pc1 > 0 and cluster == 2", columns).tolist() == [False, False, True, True]
    assert choose("pc1>=5e-1&cluster!=2", columns).tolist() == [False, True, False, False]
    for wrong in ("pc9 < 0", "pc1 <", "pc1 < 0 or cluster == 1", "pc1 < 1.2.3", ""):
        with pytest.raises(BadInput, match="selection"):
            choose(wrong, columns)


def test_what_there_is_not_is_refused():
    latents, precision = cloud(20)
    made = LatentCloud.of(latents, precision)
    with pytest.raises(BadInput, match="component 4 of 3"):
        component_series(made, 3)
    with pytest.raises(BadInput, match="one particle"):
        graph_series(made, neighbour_graph(made.points), 3, 3)
