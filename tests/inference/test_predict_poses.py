from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cryorbit.data import MemoryImages, Pose
from cryorbit.geometry.groups import act_on_images, act_on_rotation, act_on_shift
from cryorbit.geometry.rotations import geodesic_angle, random_rotations, rotvec_to_matrix
from cryorbit.inference import known_map
from cryorbit.inference.engine import workers
from cryorbit.inference.predict_poses import doubtful, likelier, search, worst
from cryorbit.inference.predictor import PosePosterior, Predictor
from cryorbit.inference.proposals import separate
from cryorbit.inference.refine import half_disk
from cryorbit.models.pose_encoder import PosePrediction
from pose_models import BOX, PIXEL_A, REFINED_DEG, SAME_POSE_DEG, fine_model, model_of, predicted, simulated

SAME_AREA = 0.03
"""Of a half disk of radius 10, counted in pixels and as the area of rings."""
EQUIVARIANT = 2e-4
"""Float32 through a filter, a network and a closest rotation, whose condition an untrained network does not bound."""


@pytest.mark.parametrize("element", range(8))
def test_moved_images_have_moved_hypotheses(element):
    """The network's distribution for a stack moved by D4 is the moved distribution, with CTFs that D4 leaves alone."""
    stack, _, _ = simulated()
    model = model_of(max_images=48)
    rows = torch.arange(12)
    images = act_on_images(stack.images[torch.arange(len(stack))], element)
    moved = replace(stack, images=MemoryImages(images))
    here, there = (Predictor(s, model, contrast="light").hypotheses(rows, top=8) for s in (stack, moved))
    torch.testing.assert_close(there.log_probability, here.log_probability, rtol=0, atol=EQUIVARIANT)
    torch.testing.assert_close(
        there.rotation, act_on_rotation(here.rotation, element), rtol=0, atol=10 * EQUIVARIANT
    )
    shift = act_on_shift(here.shift_A / PIXEL_A, element, box=BOX) * PIXEL_A
    torch.testing.assert_close(there.shift_A, shift, rtol=0, atol=10 * EQUIVARIANT * PIXEL_A)


def test_refined_poses_are_right_whatever_the_network_knows():
    """With all doubtful images searched, nearly untrained hypotheses end in poses as good as those of the full search."""
    stack, truth, _ = simulated()
    model, rows = model_of(max_images=32), torch.arange(24)
    few = stack.select(rows)
    found = predicted(few, model, most_searched=1.0)
    predictor = Predictor(few, model, contrast="light")
    full, oracle = predictor.search(rows), predictor.from_pose(rows, truth[rows])
    error = torch.rad2deg(geodesic_angle(full.found.rotation, truth.rotation[rows].float()))
    assert float(error.median()) < REFINED_DEG
    apart = torch.rad2deg(geodesic_angle(full.found.rotation, oracle.found.rotation))
    assert float(apart.median()) < SAME_POSE_DEG
    right = torch.rad2deg(geodesic_angle(found.pose.rotation, truth.rotation[rows].float())) < 15
    assert float(right.float().mean()) >= float((error < 15).float().mean()) - 2 / len(rows)
    assert bool(
        (
            found.refined.log_likelihood
            >= predicted(few, model, search_doubtful=False).refined.log_likelihood
        ).all()
    )


def test_evaluations_are_counted():
    """8 hypotheses by 3 steps and a start, then 2 of them, at their numbers of coefficients; a search counts its grid.

    What a grid pose counts is the half disk that its rings cover, out to half a pixel beyond the last, as a local
    search would.
    """
    stack, _, _ = simulated()
    model, n = model_of(max_images=32), 10
    found = predicted(stack.select(torch.arange(n)), model, search_doubtful=False)
    assert found.proposing.poses == n * (8 + 2) * 4
    assert found.searching.poses == 0
    predictor = Predictor(stack, model, contrast="light")
    one, two = (predictor.search(torch.arange(k)).effort for k in (1, 2))
    assert two.poses == 2 * one.poses
    disk = len(half_disk(predictor.radius + 0.5))
    assert abs(one.coefficients / one.poses / disk - 1) < SAME_AREA
    assert two.coefficients == 2 * one.coefficients
    assert one.poses > 1000 * found.proposing.poses / n


def test_one_thread_or_two_give_the_same_poses():
    """Workers share blocks of images only."""
    stack, _, _ = simulated()
    one, two = (predicted(stack, model_of(max_images=32), threads=t, most_searched=0.05) for t in (1, 2))
    assert torch.equal(one.pose.rotation, two.pose.rotation)
    assert one.searching == two.searching


def test_a_larger_box_gives_the_same_poses():
    """Images in a wider frame of the same pixels have the poses of the images: what is cropped away is empty."""
    stack, _, _ = simulated()
    rows = torch.arange(16)
    wide = torch.nn.functional.pad(stack.images[torch.arange(len(stack))], (4, 4, 4, 4))
    model = model_of(max_images=32)
    found = [
        Predictor(s, model, contrast="light").search(rows).found.rotation
        for s in (stack, replace(stack, images=MemoryImages(wide)))
    ]
    assert float(torch.rad2deg(geodesic_angle(*found)).median()) < SAME_POSE_DEG


def test_shifts_come_back_in_angstrom():
    """Refined from the truth of noise-free images, shifts stay where they were."""
    stack, truth, _ = simulated()
    model, rows = model_of(max_images=32), torch.arange(16)
    predictor = Predictor(stack, model, contrast="light")
    found = predictor.from_pose(rows, truth[rows]).found
    pose = Pose(found.rotation, found.shift_px * predictor.pixel_A)
    assert float((pose.shift_A - truth.shift_A[rows]).norm(dim=1).median()) < 0.25 * PIXEL_A


def test_poor_explanations_are_doubted_up_to_the_limit():
    """Of 300 images of which 60 are explained far worse, these are doubted; the limit takes the worst of them.

    Not where far worse, for very precise images, is a few per cent; but a rival pose is a doubt anywhere.
    """
    stack, _, _ = simulated()
    found = predicted(stack, model_of(max_images=32), search_doubtful=False).refined
    n = 300
    blank = {name: torch.zeros(n, *value.shape[1:]) for name, value in vars(found).items()}
    deviation = torch.randn(n, generator=torch.Generator().manual_seed(0))
    deviation[:60] -= 15
    explained = 1 + 0.05 * deviation
    located = type(found)(
        **(blank | {"deviation": deviation, "explained": explained, "confidence": torch.ones(n)})
    )
    flagged = doubtful(located)
    assert bool(flagged[:60].all())
    assert float(flagged[60:].float().mean()) < 0.2
    chosen = worst(located, flagged, most=0.1)
    assert len(chosen) == 30
    assert float(deviation[chosen].max()) <= float(deviation[:60].sort().values[29])
    slight = replace(located, explained=1 + 0.005 * deviation)
    assert not bool(doubtful(slight).any())
    sure = replace(located, confidence=torch.cat((torch.full((1,), 0.5), torch.ones(n - 1))))
    assert bool(doubtful(replace(sure, deviation=torch.zeros(n)))[0])


def _prediction(n=6, k=40):
    g = torch.Generator().manual_seed(1)
    rotation = random_rotations(n * k, generator=g, dtype=torch.float32).view(n, k, 3, 3)
    rotation[:, 1::2] = rotation[:, ::2]  # every hypothesis twice
    return PosePrediction(rotation, torch.randn(n, k, generator=g), torch.randn(n, k, 2, generator=g), 1 / k)


def test_separate_hypotheses_are_apart_and_begin_with_the_best():
    """The first is the most probable; doubles wait until nothing else is left; none is taken twice."""
    prediction = _prediction()
    eight = separate(prediction, 8, apart_deg=15.0)
    assert torch.equal(eight.logits[:, 0], prediction.logits.amax(1))
    angle = torch.rad2deg(geodesic_angle(eight.rotation[:, :, None], eight.rotation[:, None]))
    angle += 180 * torch.eye(8)
    assert float(angle.min()) > 14.9
    everything = separate(prediction, 40, apart_deg=15.0)
    assert torch.equal(everything.logits.sort(1).values, prediction.logits.sort(1).values)


@pytest.mark.parametrize("box", [24, 31, 48])
def test_images_of_any_box_have_their_poses(box):
    """Of a model with an encoder of 24 and a map of 48 px: the finer of map and images sets no limit for the other."""
    stack, truth, _ = simulated(box=box)
    predictor, rows = Predictor(stack, fine_model(), contrast="light"), torch.arange(12)
    posterior, proposed = predictor.propose(rows, top=4)
    assert posterior.rotation.shape == (12, 4, 3, 3)
    found = [
        predictor.search(rows),
        predictor.from_pose(rows, truth[rows]),
        predictor.refine(rows, posterior),
    ]
    assert torch.equal(found.pop().found.rotation, proposed.found.rotation)
    for each in found:
        error = torch.rad2deg(geodesic_angle(each.found.rotation, truth.rotation[rows].float()))
        assert float(error.median()) < REFINED_DEG


def test_all_searches_share_one_grid(monkeypatch):
    """However many threads and blocks of images, the templates are made once."""
    stack, _, _ = simulated()
    made, make = [], known_map.make_view
    monkeypatch.setattr(known_map, "make_view", lambda *a, **k: made.append(1) or make(*a, **k))
    predictor = Predictor(stack, model_of(max_images=32), contrast="light")
    with workers(2) as team:
        for rows in torch.arange(20).split(10):
            search(predictor, rows, team)
    assert len(made) == 1


def test_the_probability_of_a_mode_is_that_of_all_hypotheses_in_it():
    """Also of those that were left out of the kept ones because they are near."""
    g = torch.Generator().manual_seed(2)
    best = random_rotations(5, generator=g, dtype=torch.float32)
    small = rotvec_to_matrix(math.radians(10.0) * torch.eye(3))
    large = rotvec_to_matrix(math.radians(20.0) * torch.eye(3))
    rotation = torch.cat((best[:, None], small @ best[:, None], large @ best[:, None]), 1)
    logits = torch.tensor([3.0, 1.0, 2.0, 0.0, 2.5, 1.5, 0.5]).expand(5, 7)
    whole = PosePrediction(rotation, logits, torch.zeros(5, 7, 2), 1 / 7)
    found = PosePosterior.of(whole, top=3, pixel_A=PIXEL_A)
    torch.testing.assert_close(found.mode_probability, logits.softmax(1)[:, :4].sum(1))
    assert bool((found.mode_probability > found.log_probability.exp()[:, 0] + 0.1).all())


def test_one_hypothesis_says_nothing_of_its_probability():
    """Of an encoder with one hypothesis probability and entropy are NaN; what is searched has its rivals'."""
    stack, _, _ = simulated()
    model, rows = model_of(encoder="d4", max_images=32), torch.arange(8)
    alone = predicted(stack.select(rows), model, refine=False)
    assert bool(alone.confidence.isnan().all() & alone.posterior.entropy.isnan().all())
    predictor = Predictor(stack, model, contrast="light")
    found = predictor.propose(rows, top=8)[1].found
    assert bool(found.confidence.isnan().all())
    searched = predictor.search(rows[:3]).found
    for likelihood in (math.inf, -math.inf):  # whichever of the two poses is kept
        new = replace(searched, log_likelihood=torch.full((3,), likelihood))
        best = likelier(found, new, rows[:3])
        assert torch.equal(best.confidence[:3], searched.confidence)
        assert bool(best.confidence[3:].isnan().all())
