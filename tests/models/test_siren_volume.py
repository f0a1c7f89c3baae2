"""FourierNet: the published formula, the sum along an axis, and the ways to save memory."""

from __future__ import annotations

import pytest
import torch

from cryorbit.fourier.centred import fft_centred
from cryorbit.models.siren_volume import SirenVolume, SirenVolumeSettings
from laws import ROUND_OFF
from physics_models import uniform_rotations

SMALL = {"width": 24, "modulant_layers": 2, "envelope_layers": 1}
BFLOAT16 = 2e-2
"""Relative: hidden layers with eight bits each; measured 0.007."""


def make(box: int, **options) -> SirenVolume:
    settings = SirenVolumeSettings(box=box, **{**SMALL, **options})
    return SirenVolume(settings, generator=torch.Generator().manual_seed(0))


def disk(radius: float) -> torch.Tensor:
    r = int(radius)
    ky, kx = torch.meshgrid(torch.arange(-r, r + 1), torch.arange(-r, r + 1), indexing="ij")
    keep = kx.square() + ky.square() <= radius**2
    return torch.stack((kx[keep], ky[keep]), 1).float()


def test_as_published_by_default():
    """332,036 weights; modulant and envelope of four and three sine layers with omega 40 and 30."""
    net = SirenVolume(SirenVolumeSettings(box=8))
    assert sum(p.numel() for p in net.parameters()) == 332_036
    assert [len(part.linear()) for part in (net.modulant, net.envelope)] == [5, 4]
    assert (net.modulant.omega, net.envelope.omega) == (40.0, 30.0)


def test_values_are_envelope_times_modulant():
    """exp(E(k)) M(k) for x > 0 with coordinates k / (box / 2), real and imaginary part each."""
    net = make(16)
    at = torch.tensor([[1.5, -2.0, 3.0], [0.2, 0.0, -7.0]])
    expected = torch.exp(net.envelope(at / 8)) * net.modulant(at / 8)
    torch.testing.assert_close(net.transform(at), torch.view_as_complex(expected))
    torch.testing.assert_close(net.transform(-at), torch.view_as_complex(expected).conj().resolve_conj())


@pytest.mark.parametrize("box", [11, 12])
def test_slices_along_the_axes_are_transforms_of_sums(box: int):
    """Fourier slice theorem for `volume()`: exact where the slice meets whole frequencies."""
    net = make(box, amplitude=5.0).double()
    values = net.volume(1.0).values
    points = disk(box / 2 - 0.51).double()
    x, y = (points.long() + box // 2).T
    cyclic = torch.eye(3, dtype=torch.float64)[None, [1, 2, 0]]  # x_lab = y, y_lab = z, z_lab = x
    for rotation, image in (
        (torch.eye(3, dtype=torch.float64)[None], values.sum(0)),
        (cyclic, values.sum(2)),
    ):
        expected = fft_centred(image, dims=(0, 1))[y, x]
        # What stands at Nyquist of an even box cannot be told from its mate: it is left out of the map.
        found = net.slices(rotation, points)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_recomputing_changes_memory_only():
    """Values and gradients are those of keeping everything, bit for bit where the chunks are the same."""
    keep, again = make(12), make(12, memory="recompute")
    rotation, points = uniform_rotations(3).float(), disk(4.0)
    values = []
    for net in (keep, again):
        turned = rotation.clone().requires_grad_()
        slices = net.slices(turned, points)
        slices.abs().square().sum().backward()
        values.append((slices.detach(), turned.grad, *(p.grad for p in net.parameters())))
    for a, b in zip(*values, strict=True):
        assert a is not None
        torch.testing.assert_close(a, b, rtol=ROUND_OFF[torch.float32], atol=1e-6)


def test_bfloat16_stays_close():
    """Hidden layers of eight bits; values stay complex64 and gradients float32."""
    full, low = make(12), make(12, precision="bfloat16")
    rotation, points = uniform_rotations(3).float(), disk(4.0)
    a, b = full.slices(rotation, points), low.slices(rotation, points)
    assert b.dtype == torch.complex64
    assert float(((a - b).norm() / a.norm()).detach()) < BFLOAT16
    b.abs().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in low.parameters())
