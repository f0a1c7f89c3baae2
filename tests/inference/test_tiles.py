"""Laws of the tiled search: it is the plain one, block by block."""

import pytest
import torch

from cryorbit.inference import tiles as tiles_module
from cryorbit.inference.search import RingData, SliceSums, accumulate, image_matrix, normalise, score
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


def _mixed():
    """A dozen images from flat to sharp posteriors, in no order."""
    data, plan, templates = _problem(0)
    strength = torch.tensor([1.0, 30.0, 0.01, 300.0])[:, None, None, None]
    filtered = (data.filtered[None] * strength).flatten(0, 1)
    return RingData(filtered, (data.ctf_power[None] * strength).flatten(0, 1)), plan, templates


@pytest.mark.parametrize("few", [0.0, 0.5, 1.0])
def test_the_way_taken_does_not_matter(monkeypatch, few):
    """Weights made at once, or views near the best looked at again, or whichever the image before called for."""
    monkeypatch.setattr(tiles_module, "FEW", few)
    data, plan, templates = _mixed()
    tiles = _blocks(templates, 2)
    parts = tiles.empty_sums()
    found = search_tiles(data, plan, tiles, sums=parts)
    whole = normalise(score(data, image_matrix(data, plan), plan, templates))
    assert torch.equal(found.best, whole.best)
    torch.testing.assert_close(found.log_evidence, whole.log_evidence, rtol=1e-5, atol=SINGLE_SUMS)
    torch.testing.assert_close(found.best_probability, whole.best_probability, rtol=10 * SINGLE_SUMS, atol=0)
    torch.testing.assert_close(found.entropy, whole.entropy, rtol=10 * SINGLE_SUMS, atol=10 * SINGLE_SUMS)
    assert float(found.best_probability.max()) <= 1 + SINGLE_SUMS
    sums = SliceSums.zeros(templates)
    accumulate(sums, whole.probability, data, image_matrix(data, plan), plan)
    scale = float(sums.numerator.abs().max())
    merged = SliceSums.of_blocks(parts)
    torch.testing.assert_close(merged.numerator, sums.numerator, rtol=1e-3, atol=1e-3 * scale)
    torch.testing.assert_close(merged.denominator, sums.denominator, rtol=1e-3, atol=1e-3)


def test_views_far_from_the_best_have_no_share(monkeypatch):
    """What lies HOPELESS below the best adds round-off: a margin ten times as wide changes nothing."""
    data, plan, templates = _mixed()
    tiles = _blocks(templates, 2)
    narrow = search_tiles(data, plan, tiles)
    monkeypatch.setattr(tiles_module, "HOPELESS", 10 * tiles_module.HOPELESS)
    wide = search_tiles(data, plan, tiles)
    assert torch.equal(narrow.best, wide.best)
    torch.testing.assert_close(narrow.log_evidence, wide.log_evidence, rtol=1e-6, atol=SINGLE_SUMS)
    torch.testing.assert_close(narrow.entropy, wide.entropy, rtol=10 * SINGLE_SUMS, atol=10 * SINGLE_SUMS)


def test_images_do_not_see_one_another(monkeypatch):
    """One image at a time or all together: the same to round-off."""
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
