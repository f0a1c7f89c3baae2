"""Laws that every decoder keeps, whatever its kind."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.centred import fft_centred
from cryorbit.models.decoder import Decoder, make_decoder
from laws import ROUND_OFF
from physics_models import GaussianBlobs, uniform_rotations

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("fourier", {}),
    ("fourier", {"padding": 1}),
    ("siren", {"width": 24, "modulant_layers": 2, "envelope_layers": 1}),
]
NAMES = ["fourier", "fourier-unpadded", "siren"]


@pytest.fixture(params=KINDS, ids=NAMES)
def kind(request) -> tuple[str, dict[str, Any]]:
    return request.param


def make(kind: tuple[Any, dict[str, Any]], box: int, *, seed: int = 0, **more: Any) -> Decoder:
    generator = torch.Generator().manual_seed(seed)
    return make_decoder(kind[0], box=box, generator=generator, **kind[1], **more).double()


def disk(radius: float, *, whole: bool = False) -> Tensor:
    r = int(radius)
    ky, kx = torch.meshgrid(torch.arange(-r, r + 1), torch.arange(-r, r + 1), indexing="ij")
    keep = (kx.square() + ky.square() <= radius**2) & (whole | (kx > 0) | ((kx == 0) & (ky >= 0)))
    return torch.stack((kx[keep], ky[keep]), 1).double()


def blobs(box: int) -> GaussianBlobs:
    return GaussianBlobs.random(12, radius_px=0.25 * box, sigma_px=0.9, seed=6)


def slices_of(model: GaussianBlobs, box: int, rotation: Tensor, points: Tensor) -> Tensor:
    plane = fft_centred(model.images(box, rotation).to(torch.complex128), dims=(-2, -1))
    return plane[:, points[:, 1].long() + box // 2, points[:, 0].long() + box // 2]


@pytest.mark.parametrize("box", [11, 12])
def test_the_map_is_real(kind, box: int):
    """V^(-k) = conj V^(k) to the last bit, in any view, on the plane x = 0 too; the origin is real."""
    decoder = make(kind, box)
    points = disk(box / 2 - 1.01)
    rotation = torch.cat((uniform_rotations(3), torch.eye(3, dtype=torch.float64)[None, [2, 1, 0]]))
    here, there = decoder.slices(rotation, points), decoder.slices(rotation, -points)
    assert torch.equal(here, there.conj().resolve_conj())
    origin = (points == 0).all(1)
    assert bool((here[:, origin].imag == 0).all())


@pytest.mark.parametrize("box", [11, 12])
def test_half_a_disk_is_the_whole_plane(kind, box: int):
    """A loss over the half disk, twice but for the origin, is that over the disk; so is its gradient."""
    decoder, rotation = make(kind, box), uniform_rotations(2)
    half, whole = disk(box / 2 - 1.01), disk(box / 2 - 1.01, whole=True)
    twice = torch.where((half == 0).all(1), 1.0, 2.0)
    weights = list(decoder.parameters())
    of_half = (decoder.slices(rotation, half).abs().square() * twice).sum()
    of_whole = decoder.slices(rotation, whole).abs().square().sum()
    torch.testing.assert_close(of_half, of_whole, rtol=ROUND_OFF[torch.float64], atol=0)
    for a, b in zip(
        torch.autograd.grad(of_half, weights), torch.autograd.grad(of_whole, weights), strict=True
    ):
        assert float((a - b).norm()) <= 1e-11 * float(b.norm())


def test_nothing_lies_beyond_reach(kind):
    """Points at Nyquist and outside read as zero and take no gradient; those inside are untouched."""
    decoder = make(kind, 12)
    points = torch.tensor([[1.0, 2.0], [6.0, 0.0], [100.0, 3.0], [0.0, -6.5]], dtype=torch.float64)
    values = decoder.slices(uniform_rotations(2), points)
    assert bool((values[:, 1:] == 0).all())
    alone = decoder.slices(uniform_rotations(2), points[:1])
    torch.testing.assert_close(values[:, :1], alone, rtol=0, atol=ROUND_OFF[torch.float64])
    assert 4 < decoder.reach_px <= 6


def test_gradients_of_rotations_are_those_of_finite_differences(kind):
    """All nine entries (no more than the first two rows matter), float64."""
    decoder = make(kind, 10)
    rotation = uniform_rotations(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: decoder.slices(r, disk(3.0)), (rotation,), atol=1e-5)


@pytest.mark.parametrize("box", [9, 10])
def test_gradients_of_weights_are_those_of_finite_differences(kind, box: int):
    """Along directions that leave the map real, the derivative of a loss is <gradient, direction>."""
    decoder, other = make(kind, box), make(kind, box, seed=1)
    rotation, points = uniform_rotations(3), disk(box / 2 - 1.01)
    weights, direction = list(decoder.parameters()), [p.detach() for p in other.parameters()]

    def loss() -> Tensor:
        return decoder.slices(rotation, points).abs().square().sum()

    slope = sum(
        float((g * d).sum()) for g, d in zip(torch.autograd.grad(loss(), weights), direction, strict=True)
    )
    step, found = 1e-6, 0.0
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(weights, direction, strict=True):
                p += sign * step * d
            found += sign * float(loss()) / (2 * step)
            for p, d in zip(weights, direction, strict=True):
                p -= sign * step * d
    assert found == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("box", [11, 12])
def test_growing_keeps_the_slices(kind, box: int):
    """A larger box reads the same below the old Nyquist, times the scale; the old decoder stays as it was."""
    decoder, rotation = make(kind, box, amplitude=3.0), uniform_rotations(3)
    points = disk(box / 2 - 2.01)
    before = decoder.slices(rotation, points)
    for new in (box, box + 1, 2 * box):
        grown = decoder.grown(new, scale=1.5)
        assert grown.box == new
        assert grown.reach_px > new / 2 - 1.01
        torch.testing.assert_close(grown.slices(rotation, points), 1.5 * before, rtol=1e-10, atol=1e-12)
        assert grown.volume(2.0).values.shape == (new,) * 3
        assert all(p.requires_grad and p.is_leaf for p in grown.parameters())
    assert torch.equal(decoder.slices(rotation, points), before)
    with pytest.raises(BadInput, match=r"only grow"):
        decoder.grown(box - 1)


def test_settings_and_weights_make_the_decoder_again(kind):
    """What a checkpoint holds is enough, and the generator alone decides what is drawn."""
    state = torch.get_rng_state()
    decoder, same = make(kind, 10), make(kind, 10)
    assert torch.equal(torch.get_rng_state(), state)
    again = make_decoder(**asdict(decoder.settings), generator=torch.Generator()).double()
    again.load_state_dict(decoder.state_dict())
    rotation, points = uniform_rotations(2), disk(3.0)
    for other in (again, same):
        assert torch.equal(other.slices(rotation, points), decoder.slices(rotation, points))


@pytest.mark.parametrize("box", [17, 20])
def test_a_map_is_learnt_from_its_slices(kind, box: int):
    """True poses, slices without noise: shell correlation with the map above 0.9 below Nyquist, in seconds."""
    model, options = blobs(box), dict(kind[1])
    if kind[0] == "siren":
        options = {"width": 48, "modulant_omega": 15.0, "envelope_omega": 10.0}
    rotation, points = uniform_rotations(600), disk(box / 2 - 1.01)
    target = slices_of(model, box, rotation, points).to(torch.complex64)
    amplitude = float(target.abs().square().mean().sqrt())
    decoder = make_decoder(
        kind[0], box=box, amplitude=amplitude, generator=torch.Generator().manual_seed(0), **options
    )
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=2e-3 if kind[0] == "siren" else 0.1)
    for _ in range(STEPS[kind[0]]):
        chosen = torch.randint(600, (32,), generator=generator)
        found = decoder.slices(rotation[chosen].float(), points.float())
        loss = ((found - target[chosen]).abs() / amplitude).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] *= 0.1 ** (1 / STEPS[kind[0]])
    learnt, truth = decoder.volume(1.5), Volume(model.values(box).float(), 1.5)
    curve = fourier_shell_correlation(learnt, truth).correlation[1 : box // 2 - 1]
    assert float(curve.min()) > 0.9
    assert float((learnt.values * truth.values).sum() / truth.values.square().sum()) == pytest.approx(
        1, abs=0.1
    )


STEPS = {"fourier": 60, "siren": 250}


def test_bad_requests_say_what_was_wanted():
    with pytest.raises(BadInput, match=r"no option depth; it has name, box"):
        make_decoder("siren", box=16, depth=3)
    with pytest.raises(BadInput, match=r"amplitude > 0 and padding 1 or 2"):
        make_decoder("fourier", box=16, amplitude=0.0)
    with pytest.raises(BadInput, match=r"box >= 2"):
        make_decoder("siren", box=0)
