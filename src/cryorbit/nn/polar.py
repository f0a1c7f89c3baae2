"""Images in polar coordinates, where turning the image shifts the angle and mirroring it reverses the angle.

An image enters as the real function c = Re X + Im X of its transform X on rings (see `fourier.polar`), sampled at
`n_angles` angles. If the image is turned by a, c(t) becomes c(t - a); if y becomes -y, c(t) becomes c(-t). Circular
convolutions commute with the shift, exactly for every multiple of 2 pi / n_angles; the mirror is taken in by running
the reversed circle through the same weights and tying what is read out by R <-> Rx(pi) R, the rotation that mirrors a
projection.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.fourier.filters import soft_disc_mask
from cryorbit.fourier.polar import from_circle, to_circle
from cryorbit.nn.table import Table


@dataclass(frozen=True)
class PolarSettings:
    """Rings of the transform: radii step, 2 step, .. below `max_radius` Fourier pixels, `n_angles` on each."""

    box: int
    n_angles: int
    max_radius: float
    step: float = 1.0
    """Distance of rings in Fourier pixels; below 1 no part of the image folds onto another."""
    mask_px: float | None = None
    """Radius of the soft disc cut from the image first, pixels; the largest that clears the edge unless given."""

    def __post_init__(self) -> None:
        if self.n_angles % 4:
            raise BadInput(f"PolarSettings: {self.n_angles} angles are not a multiple of 4.")
        if not 0 < self.step <= self.max_radius <= (self.box - 1) / 2:
            raise BadInput(
                f"PolarSettings: rings every {self.step} up to {self.max_radius} Fourier pixels do not fit in a box "
                f"of {self.box}: wanted 0 < step <= max_radius <= {(self.box - 1) / 2}."
            )

    def radii(self) -> Float[Tensor, "r"]:
        """Of the rings, in Fourier pixels, float64."""
        return (
            torch.arange(1, math.floor(self.max_radius / self.step + 1e-9) + 1, dtype=torch.float64)
            * self.step
        )

    def points(self) -> Float[Tensor, "r a 2"]:
        """(kx, ky) of the half circle in Fourier pixels, float64."""
        angle = torch.arange(self.n_angles // 2, dtype=torch.float64) * (2 * math.pi / self.n_angles)
        return self.radii()[:, None, None] * torch.stack((angle.cos(), angle.sin()), -1)

    def weights(self) -> Float[Tensor, "r"]:
        """Fourier pixels that one sample of the whole circle stands for, float64."""
        return self.radii() * (self.step * 2 * math.pi / self.n_angles)


def ring_kernel(settings: PolarSettings) -> Float[Tensor, "p t"]:
    """Matrix from the pixels of an image to real, then imaginary parts on the half rings, mask included, float64."""
    n = settings.box
    radius = n / 2 - 4 if settings.mask_px is None else settings.mask_px
    mask = soft_disc_mask(n, radius_px=max(radius, 1.0), edge_px=min(3.0, n / 8), dtype=torch.float64)
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    position = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1).reshape(-1, 2)
    phase = position @ settings.points().reshape(-1, 2).T * (2 * math.pi / n)
    return torch.cat((phase.cos(), -phase.sin()), 1) * mask.reshape(-1, 1)


class PolarRings(nn.Module):
    """Images to circles, c = Re X + Im X on rings: exact values of the transform of the masked image.

    Parameters
    ----------
    settings
        The rings. The mask's radius defaults to box / 2 - 4 pixels with a soft edge of 3, so that turns by 90 degrees
        about pixel box // 2 lose nothing at the edge of an even box.
    """

    def __init__(self, settings: PolarSettings, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.settings = settings
        self.kernel = Table(partial(ring_kernel, settings), dtype=dtype)

    def forward(self, images: Float[Tensor, "b h h"]) -> Float[Tensor, "b r t"]:
        """Circles of the images."""
        flat = images.reshape(images.shape[0], -1) @ self.kernel()
        half = flat.view(-1, 2, len(self.settings.radii()), self.settings.n_angles // 2)
        return to_circle(torch.complex(half[:, 0], half[:, 1]))


def turn_circle(circle: Float[Tensor, "*batch t"], steps: int) -> Float[Tensor, "*batch t"]:
    """The circle of the image turned by `steps` angles of the grid, from x towards y."""
    return circle.roll(steps, -1)


def mirror_circle(circle: Float[Tensor, "*batch t"]) -> Float[Tensor, "*batch t"]:
    """The circle of the image with y -> -y."""
    return circle.flip(-1).roll(1, -1)


def shift_circle(
    circle: Float[Tensor, "*batch r t"], shifts_px: Float[Tensor, "s 2"], settings: PolarSettings
) -> Float[Tensor, "*batch s r t"]:
    """Circles of the images with their content moved by -shift: a particle at `shift` comes to the centre."""
    angle = torch.einsum("sc,rac->sra", shifts_px.to(circle), settings.points().to(circle))
    angle = angle * (2 * math.pi / settings.box)
    phase = torch.polar(torch.ones_like(angle), angle)
    return to_circle(from_circle(circle)[..., None, :, :] * phase)


def angular_harmonics(circle: Float[Tensor, "*batch t"], m_max: int) -> Complex[Tensor, "*batch m"]:
    """Mean over t of c(t) exp(+i m t), m = 0 .. m_max: gains exp(i m a) when the image turns by a."""
    n = circle.shape[-1]
    if m_max > n // 2:
        raise BadInput(f"angular_harmonics: order {m_max} of {n} angles. Give at most {n // 2}.")
    return torch.fft.rfft(circle, dim=-1)[..., : m_max + 1].conj() / n


class CircularConv(nn.Module):
    """Convolution over the angle, periodic, mixing channels (rings at first): commutes with turns."""

    def __init__(self, channels_in: int, channels_out: int, *, width: int = 5) -> None:
        super().__init__()
        if width % 2 == 0:
            raise BadInput(f"CircularConv: width {width} is even. Give an odd number of taps.")
        self.conv = nn.Conv1d(channels_in, channels_out, width, padding=width // 2, padding_mode="circular")

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b o t"]:
        """Filtered circles."""
        return self.conv(x)


class PolarBlock(nn.Module):
    """Norm over channels and angle, circular convolution, non-linearity, added to the input where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, *, width: int = 5) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels_in)
        self.conv = CircularConv(channels_in, channels_out, width=width)
        self.residual = channels_in == channels_out

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b o t"]:
        """Features on the same circle."""
        y = nn.functional.silu(self.conv(self.norm(x)))
        return x + y if self.residual else y


class PolarTrunk(nn.Module):
    """Rings to feature channels by a few `PolarBlock`s; equivariant under SO(2), and O(2) if run on mirrors too."""

    def __init__(self, rings: int, channels: int, *, depth: int = 3, width: int = 5) -> None:
        super().__init__()
        sizes = [rings, *[channels] * depth]
        self.blocks = nn.Sequential(*(PolarBlock(a, b, width=width) for a, b in itertools.pairwise(sizes)))

    def forward(self, circle: Float[Tensor, "b r t"]) -> Float[Tensor, "b c t"]:
        """Features on the circle."""
        return self.blocks(circle)


class OrderwiseLinear(nn.Module):
    """For every angular order m = 0 .. orders - 1 a complex linear map of channels: all that commutes with turns.

    `weight` has the real and imaginary parts on its second axis, as `orderwise` and `read_out` take them.
    """

    def __init__(self, orders: int, channels_in: int, channels_out: int, *, scale: float = 1.0) -> None:
        super().__init__()
        spread = scale / math.sqrt(2 * channels_in * orders)
        self.weight = nn.Parameter(torch.randn(orders, 2, channels_in, channels_out) * spread)

    def forward(self, x: Complex[Tensor, "b c m"]) -> Complex[Tensor, "b o m"]:
        """Orders in, orders out."""
        return orderwise(x, self.weight)


def orderwise(x: Complex[Tensor, "b c m"], weight: Float[Tensor, "m 2 c o"]) -> Complex[Tensor, "b o m"]:
    """out[b, o, m] = sum_c x[b, c, m] weight[m, c, o]."""
    real, imag = _orderwise_parts(x, weight).chunk(2, 1)
    return torch.complex(real, imag).permute(1, 2, 0)


def _orderwise_parts(x: Tensor, weight: Tensor) -> Tensor:
    """(m, 2b, o): the real parts of all rows, then the imaginary ones; plain matrix products."""
    real, imag = x.real.permute(2, 0, 1), x.imag.permute(2, 0, 1)
    rows = torch.cat((torch.cat((real, -imag), 2), torch.cat((imag, real), 2)), 1)
    return torch.bmm(rows, weight.flatten(1, 2))


def in_plane_matrix(orders: int, n_psi: int, *, start_rad: float = 0.0) -> Float[Tensor, "n_psi m2"]:
    """Matrix from (real, imaginary) parts of orders 0 .. orders - 1 to Re [G_0 + 2 sum G_m exp(i m psi_j)]."""
    psi = start_rad + torch.arange(n_psi, dtype=torch.float64) * (2 * math.pi / n_psi)
    m = torch.arange(orders, dtype=torch.float64)
    angle = psi[:, None] * m
    wave = torch.stack((angle.cos(), -angle.sin()), -1) * torch.where(m > 0, 2.0, 1.0)[:, None]
    return wave.flatten(1)


def read_out(
    x: Complex[Tensor, "b c m"], weight: Float[Tensor, "m 2 c v"], series: Float[Tensor, "p m2"]
) -> Float[Tensor, "b v p"]:
    """Values on views by in-plane angles: `orderwise`, then the Fourier series over the order of `in_plane_matrix`.

    A dozen small matrix products and one larger; a table of all rotations by all channels never exists.
    """
    batch, views = x.shape[0], weight.shape[-1]
    parts = _orderwise_parts(x, weight)
    return (series @ parts.view(2 * parts.shape[0], batch * views)).view(-1, batch, views).permute(1, 2, 0)


@dataclass(frozen=True, eq=False)
class MirrorPairs:
    """How Rx(pi) acts on views: Rx(pi) frame_v = in_plane_rotation(delta_v) frame_partner(v)."""

    partner: Int[Tensor, "views"]
    delta_rad: Float[Tensor, "views"]

    @classmethod
    def of_frames(cls, frames: Float[Tensor, "views 3 3"]) -> MirrorPairs:
        """Pairs of opposite views; BadInput if the set of directions is not its own opposite."""
        third = frames[:, 2].double()
        closeness, partner = (-third @ third.mT).max(1)
        if float(closeness.min()) < 1 - 1e-6:
            raise BadInput(
                "MirrorPairs: a view has no opposite. Give directions that come in opposite pairs."
            )
        flip = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64, device=frames.device)
        turn = (flip[:, None] * frames.double()) @ frames.double()[partner].mT
        return cls(partner, torch.atan2(turn[:, 0, 1], turn[:, 0, 0]))

    def reflect(self, harmonics: Complex[Tensor, "*batch v m"]) -> Complex[Tensor, "*batch v m"]:
        """G of f(Rx(pi) R) from G of f: what an image predicts once it is mirrored, y -> -y.

        f(v, psi) = sum over m of exp(i m psi) G_m(v) takes the value of f at (partner, delta - psi).
        """
        m = torch.arange(harmonics.shape[-1], device=harmonics.device, dtype=torch.float64)
        angle = -(self.delta_rad.to(m)[:, None] * m).to(harmonics.real.dtype)
        partner = self.partner.to(harmonics.device)
        return harmonics[..., partner, :].conj() * torch.polar(torch.ones_like(angle), angle)
