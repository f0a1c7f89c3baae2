"""The encoder on a device of its own: whatever comes to it is moved there, what it says comes back.

Without a GPU the "meta" device stands for one: an encoder whose weights lie there, and which refuses anything else.
"""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import nn

from cryorbit.data import MemoryImages, ParticleStack, Volume
from cryorbit.geometry.rotations import random_rotations
from cryorbit.inference import amortised_settings
from cryorbit.inference.amortised import AmortisedSettings, new_training, training_images
from cryorbit.models.plane_trunk import PlaneEncoderSettings
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction, computing_on, make_encoder
from cryorbit.physics.simulate import SimulationSettings, simulate
from laws import ROUND_OFF
from physics_models import GaussianBlobs

KINDS = {
    "l2": {"encoder": "d4", "loss": "l2"},
    "sym": {"encoder": "standard", "loss": "sym"},
    "softmin": {"encoder": "d4-regular", "loss": "softmin"},
    "refined": {"encoder": "d4-regular", "loss": "softmin", "refinement": 1},
    "hybrid": {"encoder": "d4-regular", "loss": "softmin", "teacher": 0.5},
}
BFLOAT16 = 0.02
"""RMS of logits (nats) and rotations (Frobenius) of d4-regular by bfloat16 and float32 convolutions of the same weights:
measured 0.001 to 0.005. (Of d4, whose vectors are short at first, rotations move by 0.8 after one step.)"""
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class _Elsewhere(PoseEncoder):
    """Weights on the meta device, which hold no numbers; answers with random poses that depend on a weight here."""

    def __init__(self, box, k):
        super().__init__()
        self.settings, self.box, self.k, self.calls = (
            PlaneEncoderSettings(name="standard", box=box),
            box,
            k,
            0,
        )
        self.there = nn.Parameter(torch.zeros(1, device="meta"), requires_grad=False)
        self.here = nn.Parameter(torch.ones(1))

    def to(self, *args, **options):
        """Only what is there moves."""
        assert torch.device(*args, **options).type == "meta"
        return self

    def forward(self, images):
        assert images.device == self.there.device
        self.check_box(images)
        self.calls += 1
        b = len(images)
        rotation = random_rotations(b * self.k, generator=torch.Generator().manual_seed(self.calls)).float()
        still = torch.zeros(b, self.k) * self.here
        return PosePrediction(
            rotation.view(b, self.k, 3, 3) * self.here, still, still[..., None].expand(-1, -1, 2), 1 / self.k
        )


@lru_cache(maxsize=1)
def _images():
    volume = Volume(GaussianBlobs.random(14, radius_px=6.5, sigma_px=1.2, seed=5).values(24).float(), 8.0)
    made = simulate(volume, SimulationSettings(n_particles=64, box=24, pixel_size_A=8.0, snr=4.0, seed=3))
    images = MemoryImages(made.stack.images[torch.arange(64)])
    stack = ParticleStack(images=images, pixel_size_A=8.0, ids=made.stack.ids, ctf=made.stack.ctf)
    return training_images(stack, AmortisedSettings(box_px=24, contrast="light"))


def _settings(kind, device):
    few = {
        "batch": 16,
        "max_visits": 32,
        "hypotheses": 2,
        "width": 0.125,
        "search_batches": 2,
        "search_batch": 30,
    }
    return AmortisedSettings(**few, **KINDS[kind], box_px=24, contrast="light", device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_that_meets_the_encoder_is_on_its_device(kind, monkeypatch):
    """Training, refinement and evaluation call it with images there, and its answers meet the map here."""
    k = 1 if kind in ("l2", "sym") else 16
    stub = _Elsewhere(24, k)
    monkeypatch.setattr(amortised_settings, "make_encoder", lambda *_, **__: stub)
    training = new_training(_images(), _settings(kind, "meta"))
    before = stub.here.detach().clone()
    training.step()
    calls = stub.calls
    assert calls > 0
    assert not torch.equal(stub.here, before)
    found = training.encoder_poses(torch.arange(20))
    assert stub.calls > calls
    assert {found.rotation.device.type, found.shift_px.device.type} == {"cpu"}


def test_an_encoder_that_is_not_moved_is_not_touched():
    """On the CPU there is no detour."""
    encoder = make_encoder("d4", box=24, width=0.125)
    assert computing_on(encoder, "cpu") is encoder
    assert not encoder._forward_pre_hooks
    assert not encoder._forward_hooks


@pytest.mark.parametrize("kind", ["softmin", "refined"])
def test_weights_stay_float32_where_convolutions_are_bfloat16(kind):
    """A step moves them; predictions of the same weights are those of full precision within bfloat16's bound."""
    training = new_training(_images(), replace(_settings(kind, "cpu"), precision="bfloat16"))
    before = torch.nn.utils.parameters_to_vector(training.encoder.parameters()).detach()
    training.step()
    after = torch.nn.utils.parameters_to_vector(training.encoder.parameters()).detach()
    assert after.dtype == torch.float32
    assert bool((after.isfinite() & (after != before)).any())
    full = new_training(_images(), _settings(kind, "cpu")).encoder
    full.load_state_dict(training.encoder.state_dict())
    images = _images().inputs
    with torch.no_grad():
        ours, exact = training.encoder.eval()(images), full.eval()(images)
    assert float((ours.logits - exact.logits).square().mean().sqrt()) < BFLOAT16
    assert float((ours.rotation - exact.rotation).square().sum((-2, -1)).mean().sqrt()) < BFLOAT16


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_trains_the_same_encoder(kind):
    """Weights lie there, and a step gives finite ones."""
    training = new_training(_images(), _settings(kind, "cuda"))
    training.step()
    assert all(p.is_cuda and bool(p.isfinite().all()) for p in training.encoder.parameters())
    assert training.encoder_poses(torch.arange(20)).rotation.device.type == "cpu"
    again = new_training(_images(), _settings(kind, "cuda"))
    again.restore(training.state())
    again.step()


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ["standard", "c4", "d4", "d4-regular"])
def test_a_gpu_computes_what_the_cpu_does(name, norm):
    """Predictions and gradients in float64."""
    here = make_encoder(
        name, box=24, width=0.25, norm=norm, generator=torch.Generator().manual_seed(0)
    ).double()
    there = make_encoder(name, box=24, width=0.25, norm=norm).double()
    there.load_state_dict(here.state_dict())
    computing_on(there, "cuda")
    images = torch.randn(8, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for encoder in (here, there):
        out = encoder(images)
        (out.rotation.sum() + out.shift_px.square().sum() + out.logits.square().sum()).backward()
        gradients.append([p.grad.cpu() for p in encoder.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert float((a - b).norm()) <= 1e3 * ROUND_OFF[torch.float64] * float(a.norm().clamp_min(1.0))
