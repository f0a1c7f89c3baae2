from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.inference.amortised_losses import pose_loss
from cryorbit.inference.locate import Located
from cryorbit.inference.map_fit import shift_spread_px
from cryorbit.inference.pose_model import describe, rebuild
from cryorbit.inference.subject import prepare_subject
from cryorbit.inference.supervised import train_pose_model
from cryorbit.io.checkpoint import load_state, save_state
from pose_models import model_of, predicted, settings, simulated

ENCODERS = ("d4-regular", "d4", "standard", "i2s", "slice")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_goes_on_where_it_was_cut(encoder, tmp_path):
    """From a checkpoint in a file, the second half ends in the same weights, to the last bit."""
    stack, _, volume = simulated()
    chosen = settings(encoder=encoder, max_images=48)
    records = []
    for record in train_pose_model(stack, volume, chosen):
        if len(records) == 0:
            tensors = {k: v for k, v in record.state.items() if isinstance(v, torch.Tensor)}
            save_state(tmp_path / "s", tensors, {k: v for k, v in record.state.items() if k not in tensors})
        records.append(record)
    assert len(records) >= 3
    tensors, meta = load_state(tmp_path / "s")
    *_, last = train_pose_model(stack, volume, chosen, state={**meta, **tensors})
    whole, resumed = (r.result.encoder.state_dict() for r in (records[-1], last))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_model_survives_its_description(encoder):
    """Described and rebuilt, it predicts the same poses, to the last bit."""
    stack, _, _ = simulated()
    model = model_of(encoder=encoder, max_images=32)
    again = rebuild(*describe(model), model.map)
    one, other = (predicted(stack.select(torch.arange(20)), m, refine=False) for m in (model, again))
    assert torch.equal(one.pose.rotation, other.pose.rotation)
    assert torch.equal(one.posterior.log_probability, other.posterior.log_probability)
    assert again.facts == model.facts


def test_a_model_of_another_format_is_refused():
    """Another version, a missing fact, an unknown one and weights of another network are named."""
    model = model_of(max_images=32)
    weights, facts = describe(model)
    for change, word in (({"format": 99}, "format 99"), ({"colour": "red"}, "colour unknown")):
        with pytest.raises(BadInput, match=word):
            rebuild(weights, facts | change, model.map)
    with pytest.raises(BadInput, match="scale missing"):
        rebuild(weights, {k: v for k, v in facts.items() if k != "scale"}, model.map)
    with pytest.raises(BadInput, match="cannot be made again"):
        rebuild(weights, facts | {"encoder": facts["encoder"] | {"width": 0.5}}, model.map)


def test_poses_of_the_stack_and_the_scale_of_the_map_are_not_used():
    """A stack with poses gives the network it gives without; seven times the map gives it but for round-off."""
    stack, truth, volume = simulated()
    model = model_of(max_images=48)
    *_, posed = train_pose_model(replace(stack, pose=truth), volume, settings(max_images=48))
    one, other = model.encoder.state_dict(), posed.result.encoder.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    louder = replace(volume, values=7 * volume.values)
    *_, scaled = train_pose_model(stack, louder, settings(max_images=48))
    assert abs(scaled.result.facts.scale / model.facts.scale - 1) < 1e-4
    largest = float(model.map.values.max())
    torch.testing.assert_close(scaled.result.map.values, model.map.values, rtol=0, atol=1e-4 * largest)


def test_the_network_learns():
    """After a thousand projections, poses of images it has not seen are likelier by more than a nat."""
    stack, _, volume = simulated()
    subject = prepare_subject(stack, volume, settings())
    generator = torch.Generator().manual_seed(77)
    half = model_of(max_images=32).half()
    unseen = subject.dreamer.draw(half, 64, shift_sd_px=0.75, generator=generator)
    encoders = [model_of(max_images=n).encoder for n in (32, 1000)]
    with torch.no_grad():
        before, after = (pose_loss(encoder, unseen, spread=0.3) for encoder in encoders)
    assert float(before - after) > 1.0


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"box_px": 25}, "even"),
        ({"map_px": 16}, "map-px"),
        ({"max_images": 8}, "max-images"),
        ({"minutes": 0.0}, "minutes"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, word):
    """The message names the option."""
    with pytest.raises(BadInput, match=word):
        settings(**changes)


def test_images_smaller_than_the_networks_are_refused():
    """The message names the option that mends it."""
    stack, _, volume = simulated()
    with pytest.raises(BadInput, match="box-px"):
        list(train_pose_model(stack, volume, settings(box_px=32, map_px=32)))


def test_time_ends_a_training():
    """With a limit of time that has passed, one record of steps is all there is."""
    stack, _, volume = simulated()
    *_, last = train_pose_model(stack, volume, settings(max_images=10**6, minutes=1e-4))
    assert last.result.facts.training["images"] <= 16 * 2 * 2
    assert asdict(last.result.facts)["training"]["seconds"] > 0


def test_the_spread_of_shifts_is_measured():
    """Of images with shifts of 6 A per axis, searched against the map, to a third; a map that fits explains its power."""
    stack, _, volume = simulated()
    subject = prepare_subject(stack, volume, settings(shift_sd_A=None))
    assert subject.fit is not None
    assert 4.0 < subject.shift_sd_A < 8.0
    assert subject.fit.explained > 0.8
    given = prepare_subject(stack, volume, settings(shift_sd_A=11.0))
    assert given.shift_sd_A == 11.0
    assert given.fit is None


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_the_spread_of_shifts_is_that_of_sure_images_if_there_are_enough(n):
    """Of none or too few sure images it is that of all: a number, however few images there are."""
    plain = {name: torch.zeros(n) for name in Located.__dataclass_fields__}
    shift = 1.0 + torch.arange(2.0 * n).view(n, 2)

    def spread(confidence):
        given = {"rotation": torch.eye(3).expand(n, 3, 3), "shift_px": shift, "confidence": confidence}
        return shift_spread_px(Located(**(plain | given)))

    assert spread(torch.zeros(n)) == pytest.approx(float(shift.square().mean().sqrt()))
    half = (torch.arange(n) < (n + 1) // 2).float()
    assert spread(half) == pytest.approx(float(shift[half > 0].square().mean().sqrt()))
