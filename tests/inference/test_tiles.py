"""Laws of the tiled search: it is the plain one, block by block."""

import pytest
import torch

from cryorbit.inference import tiles as tiles_module
from cryorbit.inference.search import SliceSums, accumulate, image_matrix, normalise, score
from cryorbit.inference.tiles import Tiles, search_tiles
from inference_models import random_problem

SINGLE_SUMS = 1e-4
"""float32 sums over some hundred poses in another order."""


def _problem(orders, *, m_max=8, strength=1.0):
    problem = random_problem(m_max=m_max, astigmatism_rad=0.6 if orders else 0.0)
    templates = problem.templates(astigmatic_orders=orders)
    data = type(problem.data)(problem.data.filtered * strength, problem.data.ctf_power * strength)
    return data, problem.plan, templates


def _blocks(templates, views):
    return Tiles(tuple(templates.views(at, at + views) for at in range(0, templates.n_views, views)))


@pytest.mark.parametrize(("m_max", "orders"), [(8, 0), (9, 2)])
@pytest.mark.parametrize("views", [1, 2, 5])
@pytest.mark.parametrize("strength", [1.0, 30.0])
def test_tiles_give_the_same_posterior_and_sums(m_max, orders, views, strength):
    """Best pose, its probability, evidence, entropy and averaged slices, flat or sharp, whatever the blocks."""
    data, plan, templates = _problem(orders, m_max=m_max, strength=strength)
    rows = image_matrix(data, plan)
    whole = normalise(score(data, rows, plan, templates))
    sums = SliceSums.zeros(templates)
    accumulate(sums, whole.probability, data, rows, plan)
    tiles = _blocks(templates, views)
    parts = tiles.empty_sums()
    found = search_tiles(data, plan, tiles, sums=parts)
    assert torch.equal(found.best, whole.best)
    torch.testing.assert_close(found.best_probability, whole.best_probability, rtol=SINGLE_SUMS, atol=0)
    torch.testing.assert_close(found.log_evidence, whole.log_evidence, rtol=1e-5, atol=SINGLE_SUMS)
    torch.testing.assert_close(found.entropy, whole.entropy, rtol=SINGLE_SUMS, atol=10 * SINGLE_SUMS)
    merged = SliceSums.of_blocks(parts)
    scale = float(sums.numerator.abs().max())
    torch.testing.assert_close(merged.numerator, sums.numerator, rtol=1e-3, atol=1e-3 * scale)
    torch.testing.assert_close(merged.denominator, sums.denominator, rtol=1e-3, atol=1e-3)


def test_images_do_not_see_one_another(monkeypatch):
    """One image at a time or all together: the same bits."""
    data, plan, templates = _problem(0)
    tiles = _blocks(templates, 2)
    together = search_tiles(data, plan, tiles)
    monkeypatch.setattr(tiles_module, "IMAGES_AT_ONCE", 1)
    apart = search_tiles(data, plan, tiles)
    torch.testing.assert_close(apart.log_evidence, together.log_evidence)
    assert torch.equal(apart.best, together.best)


def test_no_image_is_no_work():
    """An empty batch gives an empty posterior and empty sums."""
    data, plan, templates = _problem(0)
    parts = _blocks(templates, 2).empty_sums()
    found = search_tiles(data[0:0], plan, _blocks(templates, 2), sums=parts)
    assert len(found.best) == len(found.log_evidence) == 0
    assert float(SliceSums.of_blocks(parts).numerator.abs().max()) == 0


def test_tiles_cover_all_views():
    """Blocks are in order, and complete."""
    _, plan, templates = _problem(0)
    tiles = Tiles.of(templates, plan)
    assert tiles.n_views == templates.n_views
    torch.testing.assert_close(torch.cat([b.matrix for b in tiles.blocks], -1), templates.matrix)
