"""Laws of the losses of amortised inference: what they do not depend on, and which hypotheses they leave alone."""

from itertools import pairwise

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.geometry.groups import act_on_images
from cryorbit.geometry.rotations import random_rotations, six_d_to_matrix
from cryorbit.inference.amortised_data import ImageBatch, misfit
from cryorbit.inference.amortised_losses import (
    MANY,
    REFLECTION,
    TURN,
    carried_back,
    choose,
    distillation_loss,
    logit_loss,
    predict,
    shortlist,
    softmin_weights,
)
from cryorbit.inference.amortised_settings import AmortisedSettings
from cryorbit.inference.refine import half_disk
from cryorbit.models.fourier_volume import LatticeVolume, LatticeVolumeSettings
from cryorbit.models.pose_encoder import PosePrediction, make_encoder
from laws import ROUND_OFF

LOSS_ROUND_OFF = 1e3 * ROUND_OFF[torch.float64]
"""Float64 through eleven convolutions of fresh weights and back through a slice."""


def _batch(images, points):
    n = images.shape[-1]
    half = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
    values = half[:, points[:, 1].long() % n, points[:, 0].long()]
    ctf = 1 + 0.1 * points.norm(dim=1).expand(len(images), -1)  # round, as for equal defocus along all axes
    return ImageBatch(values, ctf, points, n)


def _decoder(box):
    generator = torch.Generator().manual_seed(5)
    return LatticeVolume(LatticeVolumeSettings(box=box), generator=generator).double()


def _random_prediction(b, k, box, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    rotation = random_rotations(b * k, generator=g).view(b, k, 3, 3)
    shift = torch.randn(b, k, 2, generator=g, dtype=torch.float64)
    return PosePrediction(rotation, torch.randn(b, k, generator=g, dtype=torch.float64), shift, 1 / k)


def _misfits(decoder, batch, poses):
    slices = decoder.slices(poses.rotation.flatten(0, 1), batch.points)
    return misfit(batch, slices.unflatten(0, poses.logits.shape), poses.shift_px)


@pytest.mark.parametrize("box", [16, 17])
@pytest.mark.parametrize(("loss", "element"), [("sym", TURN), ("mirror", REFLECTION)])
def test_second_chances_do_not_see_which_image_was_given(loss, element, box):
    """The symmetric loss of a turned image, and the mirror loss of a reflected one, is that of the image."""
    generator = torch.Generator().manual_seed(1)
    encoder = make_encoder("standard", box=box, width=0.125, generator=generator).double().eval()
    images = torch.randn(3, box, box, generator=generator, dtype=torch.float64)
    decoder, points = _decoder(box), half_disk(box // 2 - 2).double()
    values = []
    for given in (images, act_on_images(images, element)):
        poses = predict(encoder, given, loss)
        scores = _misfits(decoder, _batch(given, points), poses)
        values.append(scores.min(1).values)
    assert (values[0] - values[1]).abs().max() < LOSS_ROUND_OFF * values[0].max()


@pytest.mark.parametrize("element", range(8))
def test_predictions_are_carried_back(element):
    """A pose that fits the moved image fits the image once it is carried back."""
    box, points = 16, half_disk(6).double()
    decoder, poses = _decoder(box), _random_prediction(4, 1, box)
    images = torch.randn(4, box, box, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved = _misfits(decoder, _batch(act_on_images(images, element), points), poses)
    back = _misfits(decoder, _batch(images, points), carried_back(poses, element, box=box))
    torch.testing.assert_close(moved, back, rtol=LOSS_ROUND_OFF, atol=0)


def test_losers_get_no_gradient():
    """Only the chosen hypothesis of sym and mirror is moved, and for softmin the winners and the one at random."""
    box, points = 16, half_disk(6).double()
    decoder = _decoder(box)
    images = torch.randn(5, box, box, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    batch = _batch(images, points)
    for loss, most in (("sym", 1), ("mirror", 1), ("softmin", 2)):
        poses = _random_prediction(5, 6, box)
        poses.rotation.requires_grad_()
        poses.shift_px.requires_grad_()
        scores = _misfits(decoder, batch, poses).detach()
        chosen = choose(scores, loss, temperature=1e5, most=most, relaxed=0.0)
        (_misfits(decoder, batch, chosen.of(poses)) * chosen.weight).sum().backward()
        moved = poses.rotation.grad.flatten(2).abs().sum(2) > 0
        expected = torch.zeros_like(moved).scatter(1, chosen.index, chosen.weight > 0)
        assert torch.equal(moved, expected)
        assert moved.gather(1, scores.argmin(1, keepdim=True)).all()
        assert moved.sum(1).max() <= most


def test_weights_of_images_sum_to_one():
    """Whatever is chosen, and with one further hypothesis at random."""
    scores = torch.rand(7, 9, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    for loss in ("l2", "sym", "softmin"):
        chosen = choose(scores, loss, temperature=0.3, most=3, relaxed=0.05, generator=generator)
        torch.testing.assert_close(chosen.weight.sum(1), torch.ones(7))


def test_cold_softmin_is_the_least():
    """As the temperature falls to 0 the weighted misfit falls to the least one."""
    scores = torch.rand(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    least = scores.min(1).values
    means = [(softmin_weights(scores, t) * scores).sum(1) for t in (1.0, 0.1, 1e-4, 0.0)]
    assert all((a >= b - 1e-12).all() for a, b in pairwise(means))
    torch.testing.assert_close(means[-1], least)


def test_logits_learn_the_weights():
    """The cross-entropy is least, and its gradient zero, where the probabilities are the weights."""
    weights = softmin_weights(torch.rand(4, 5, generator=torch.Generator().manual_seed(0)), 0.5)
    logits = weights.log().requires_grad_()
    logit_loss(logits, weights).backward()
    assert logits.grad.abs().max() < 1e-6


def test_distillation_ends_at_the_teacher():
    """Following its gradient, hypotheses come to the pose they are taught, whichever was nearest."""
    g = torch.Generator().manual_seed(0)
    six = torch.randn(3, 4, 6, generator=g).requires_grad_()
    shift, logits = torch.zeros(3, 4, 2, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    rotation, place = random_rotations(3, generator=g, dtype=torch.float32), torch.randn(3, 2, generator=g)
    optimiser = torch.optim.Adam([six, shift, logits], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        poses = PosePrediction(six_d_to_matrix(six), logits, shift, 0.25)
        loss = distillation_loss(poses, rotation, place)
        loss.backward()
        optimiser.step()
    best = poses.best()
    assert (best.rotation - rotation).square().sum((1, 2)).max() < 0.01
    assert (best.shift_px - place).abs().max() < 0.05


def test_a_second_chance_is_refused_where_it_is_built_in():
    """D4 carries its prediction along with the image, so sym and mirror would compare one pose twice."""
    with pytest.raises(BadInput, match="built in"):
        AmortisedSettings(encoder="d4", loss="sym")


def test_a_shortlist_holds_the_likeliest_and_strays():
    """Of a grid the likeliest cells, each with its own rotation, and some of the others; few hypotheses stay as they are."""
    k = MANY + 44
    rotation = random_rotations(k, generator=torch.Generator().manual_seed(0)).expand(3, k, 3, 3)
    logits = torch.randn(3, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = PosePrediction(rotation, logits, torch.zeros(3, k, 2, dtype=torch.float64), 1 / k)
    short = shortlist(grid, most=10, strays=4, generator=torch.Generator().manual_seed(2))
    assert short.logits.shape == (3, 14)
    top = grid.top(10)
    assert torch.equal(short.logits[:, :10], top.logits)
    assert torch.equal(short.rotation[:, :10], top.rotation)
    for image in range(3):
        place = torch.tensor([int((logits[image] == value).nonzero()) for value in short.logits[image]])
        assert torch.equal(rotation[image, place], short.rotation[image])
    assert shortlist(short) is short


@pytest.mark.parametrize("loss", ["l2", "sym", "mirror"])
@pytest.mark.parametrize("encoder", ["i2s", "slice"])
def test_losses_that_move_poses_are_refused_for_grids(encoder, loss):
    """Their cells do not move, so nothing but a shift would be learned."""
    with pytest.raises(BadInput, match="softmin"):
        AmortisedSettings(encoder=encoder, loss=loss)


@pytest.mark.parametrize("encoder", ["c4", "d4", "i2s", "slice"])
def test_bfloat16_is_refused_where_it_turns_poses(encoder):
    with pytest.raises(BadInput, match="d4-regular"):
        AmortisedSettings(encoder=encoder, precision="bfloat16")
