from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cryorbit.benchmarks.flex_tasks import FlexData, FlexTask, flex_data
from cryorbit.cli.flex_files import load_flex, save_flex
from cryorbit.data import Gaussians
from cryorbit.errors import BadFile
from cryorbit.inference.flex import FlexTraining
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.inference.flex_start import train_flex
from cryorbit.inference.observations import contrast_of, observe

SETTINGS = FlexSettings(
    latents="encoder", latent=3, count=60, epochs=4, batch=20, polish=False, rank=8, width=16, threads=1
)


@pytest.fixture(scope="module")
def lobes() -> FlexData:
    return flex_data("lobes", FlexTask(images=200, box=20, snr=3.0))


@pytest.fixture(scope="module")
def records(lobes) -> list:
    """All that a training yields, with copies of the states."""
    return [
        replace(record, state={k: _copy(v) for k, v in record.state.items()})
        for record in train_flex(lobes.stack, SETTINGS)
    ]


def _copy(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_without_polish_latents_are_what_the_encoder_says(records, lobes):
    """Every image's vector is the mean that the network reads from it, and its precision that of the Gaussians there."""
    result = records[-1].result
    likelihood = _training(lobes, records).likelihood
    rows = torch.arange(len(lobes))
    found = result.encoder.encode(likelihood, lobes.stack.pose, rows)
    # The same network on batches of another size.
    torch.testing.assert_close(found.mean, result.z, rtol=1e-4, atol=1e-4)
    assert bool((torch.linalg.eigvalsh(result.precision) > 0.99).all())  # the prior alone gives 1
    assert result.z.std(0).max() > 0.3


def _training(lobes, records) -> FlexTraining:
    """One whose learning is over."""
    state = next(r.state for r in reversed(records) if "steps" in r.state)
    anchors = Gaussians(*(state[f"begun_{name}"] for name in ("position_A", "amplitude", "width_A")))
    generator = torch.Generator().manual_seed(SETTINGS.seed)
    observed = observe(lobes.stack, sign=contrast_of(lobes.stack, "auto"), generator=generator)
    training = FlexTraining(observed, anchors, state["begun_z"], SETTINGS)
    training.restore(state)
    return training


def test_a_stopped_training_goes_on_to_the_same_result(records, lobes):
    """From the middle of the learning, with what is drawn at random in it."""
    middle = next(r for r in records if r.stage == "learning" and r.step < r.steps)
    *_, last = train_flex(lobes.stack, SETTINGS, state=middle.state)
    assert torch.equal(last.result.z, records[-1].result.z)
    assert torch.equal(last.result.model.position, records[-1].result.model.position)


def test_polish_raises_the_posterior_of_what_was_read(records, lobes):
    """A Gauss-Newton step from the encoder's means does not lower any image's log posterior."""
    before = records[-1].result
    state = next(r.state for r in reversed(records) if r.stage == "learning")
    *_, last = train_flex(lobes.stack, replace(SETTINGS, polish=True), state=state)
    after = last.result

    def objective(result):
        return result.misfit + 0.5 * result.z.square().sum(1)

    assert bool((objective(after) <= objective(before) + 1e-3 * before.misfit.mean()).all())
    assert float((objective(after) - objective(before)).mean()) < 0


@pytest.mark.parametrize("name", ["gradient", "image"])
def test_an_encoder_is_kept_with_the_model(records, lobes, name, tmp_path):
    """Written and read again it says the same; a file of another kind is refused."""
    settings = replace(SETTINGS, encoder=name, epochs=1)
    state = {k: v for k, v in records[-2].state.items() if k.startswith("begun")}
    *_, last = train_flex(lobes.stack, settings, state=state)
    save_flex(tmp_path, last.result, settings)
    again, known = load_flex(tmp_path)
    assert known.encoder == name
    assert again.encoder is not None
    assert last.result.encoder is not None
    likelihood = _training(lobes, records).likelihood
    both = [
        e.encode(likelihood, lobes.stack.pose, torch.arange(20)) for e in (again.encoder, last.result.encoder)
    ]
    assert torch.equal(both[0].mean, both[1].mean)
    (tmp_path / "encoder.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(BadFile, match="not the encoder"):
        load_flex(tmp_path)
