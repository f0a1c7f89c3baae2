"""Particle images as inference sees them: sign and scale settled, noise known, transforms on demand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryorbit.data import CTF, ParticleStack
from cryorbit.errors import BadInput
from cryorbit.physics.contrast import contrast_sign
from cryorbit.physics.noise import noise_spectrum
from cryorbit.physics.transfer import ctf_image, ctf_values, odd_phase

_SAMPLE = 1000
"""Images that statistics of the whole stack are taken from."""


Contrast = Literal["auto", "light", "dark"]

RadiusFrom = Literal["variance", "rim", "user"]
"""The spread of shifted images; the rim of their mean, where particles look like a ball from every side; what was given."""

_SURE_Z = 5.0
"""Evidence for dark protein, in standard errors, below which images are taken as they are."""


def contrast_of(stack: ParticleStack, choice: Contrast) -> float:
    """+1 for light protein, -1 for dark; "auto" believes the images where they are sure and takes +1 elsewhere."""
    if choice != "auto":
        return 1.0 if choice == "light" else -1.0
    rows = torch.linspace(0, len(stack) - 1, min(len(stack), 500)).round().long()
    ctf = None if stack.ctf is None else stack.ctf[rows]
    # Rather too large a radius: the middle of a hollow particle is dark.
    radius_A = 0.36 * stack.box * stack.pixel_size_A
    found = contrast_sign(stack.images[rows], ctf, pixel_size_A=stack.pixel_size_A, radius_A=radius_A)
    return -1.0 if found.sign < 0 and abs(found.z_score) > _SURE_Z else 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Observations:
    """A stack with its statistics. Frequencies are in Fourier pixels of the images' box, 1 / (box * pixel size)."""

    stack: ParticleStack
    sign: float
    """+1, or -1 where protein is dark in the file."""
    scale_each: bool
    """Whether every image is divided by its own background deviation."""
    background: Bool[Tensor, "box box"]
    noise_power: Float[Tensor, "shells"]
    """E |noise|^2 of one coefficient of the unnormalised transform, per shell."""
    total_power: Float[Tensor, "shells"]
    """The same of the images."""
    particle_radius_px: float
    shift_sd_px: float
    """What the search first takes the particles' shifts to be, per axis."""
    centre_px: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Middle of the particle in the frame of its poses (x, y, z)."""
    radius_from: RadiusFrom = "variance"
    """What the radius was taken from, which says how far beyond it density may lie (`start_maps.ROOM`)."""

    @property
    def box(self) -> int:
        """Edge of an image in pixels."""
        return self.stack.box

    @property
    def pixel_size_A(self) -> float:
        """Pixel size in angstrom."""
        return self.stack.pixel_size_A

    def images(self, rows: Int[Tensor, "n"]) -> Float[Tensor, "n box box"]:
        """Images with the background at 0 and protein light."""
        return level(self.stack.images[rows], self.background, sign=self.sign, scale_each=self.scale_each)

    def grey_values(self) -> float:
        """Grey values of the file per unit of `images`: the median of what images are divided by, 1 where they are not."""
        if not self.scale_each:
            return 1.0
        rows = torch.linspace(0, len(self.stack) - 1, min(len(self.stack), _SAMPLE)).round().long()
        return float(self.stack.images[rows][:, self.background].std(1).median())

    def transforms(self, rows: Int[Tensor, "n"]) -> Complex[Tensor, "n box half"]:
        """Unnormalised transforms about pixel box // 2, rows from -box // 2 upwards."""
        centred = torch.fft.ifftshift(self.images(rows), dim=(-2, -1))
        return torch.fft.fftshift(torch.fft.rfft2(centred), dim=-2)

    def ctf(self, rows: Int[Tensor, "n"], points: Float[Tensor, "*grid 2"]) -> Float[Tensor, "n *grid"]:
        """CTF at points given in Fourier pixels; 1 where the stack has none."""
        ctf = self.stack.ctf
        if ctf is None:
            return torch.ones(len(rows), *points.shape[:-1])
        return ctf_values(ctf[rows], points / (self.box * self.pixel_size_A))

    def undo_odd_phase(
        self, values: Complex[Tensor, "n *grid"], rows: Int[Tensor, "n"], points: Float[Tensor, "*grid 2"]
    ) -> Complex[Tensor, "n *grid"]:
        """Take the phase of beam tilt and other odd aberrations out of transforms."""
        if self.stack.ctf is None:
            return values
        phase = odd_phase(self.stack.ctf[rows], points / (self.box * self.pixel_size_A))
        return values if phase is None else values * phase.conj()

    def noise_at(self, radius: Float[Tensor, "*n"], *, floor: float) -> Float[Tensor, "*n"]:
        """Noise power at radii in Fourier pixels, never below `floor` times the power of the images themselves."""
        shell = radius.round().long().clamp(0, self.noise_power.shape[0] - 1)
        return torch.maximum(self.noise_power, floor * self.total_power)[shell]

    def noise_of(
        self, rows: Int[Tensor, "n"], radius: Float[Tensor, "k"], *, floor: float
    ) -> Float[Tensor, "#n k"]:
        """`noise_at` for some images; one row serves all of them here."""
        return self.noise_at(radius, floor=floor)[None]


def level(
    images: Float[Tensor, "n box box"], background: Bool[Tensor, "box box"], *, sign: float, scale_each: bool
) -> Float[Tensor, "n box box"]:
    """Images with the mean of the background pixels taken off, times sign, and divided by their deviation if asked."""
    outside = images[:, background]
    out = (images - outside.mean(1)[:, None, None]) * sign
    return out / outside.std(1).clamp_min(1e-20)[:, None, None] if scale_each else out


def observe(
    stack: ParticleStack,
    *,
    sign: float = 1.0,
    particle_diameter_A: float | None = None,
    nearly_round: bool = False,
    keep_scale: bool = False,
    generator: torch.Generator,
) -> Observations:
    """Measure what the search needs to know of a stack, from a random sample of its images.

    Parameters
    ----------
    nearly_round
        The particle has cubic symmetry, so that the mean image shows its edge even where neighbours fill the box.
    keep_scale
        The grey scale of the file means something: images are not divided by their background deviation.

    Raises
    ------
    BadInput
        If images are smaller than 16 pixels or without any variation.
    """
    box = stack.box
    if box < 16:
        raise BadInput(f"{stack.source}: images of {box} px are too small; 16 px is the least.")
    rows = torch.randperm(len(stack), generator=generator)[:_SAMPLE].sort().values
    axis = torch.arange(box) - box // 2
    radius = (axis[:, None].square() + axis.square()).float().sqrt()
    background = radius > 0.46 * box
    raw = stack.images[rows]
    spread_out = raw[:, background].std(1)
    if not bool((raw.flatten(1).std(1) > 0).all()):
        raise BadInput(f"{stack.source}: an image without any variation. Run `cryorbit check` to find it.")
    spread_in = raw[:, radius < 0.25 * box].std(1)
    # Without noise the background holds only the rim of the CTF: dividing by it would scale images by chance.
    scale_each = not keep_scale and bool((spread_out / spread_in).median() > 0.3)
    images = level(raw, background, sign=sign, scale_each=scale_each)
    noise = noise_spectrum(images, radius_px=0.42 * box, edge_px=0.04 * box).power
    power = torch.fft.rfft2(images).abs().square().mean(0)
    total = _shell_means(power, box)
    noise = noise[: total.shape[0]].to(total)
    noise[:2] = noise[2]  # the mean was taken off, so the lowest shells read low
    ctf = None if stack.ctf is None else ctf_image(stack.ctf[rows], box, pixel_size_A=stack.pixel_size_A)
    source: RadiusFrom = "rim" if nearly_round else "variance"
    if particle_diameter_A is None:
        measured = particle_radius_px(images, ctf)
        if nearly_round:
            measured = min(measured, mean_image_radius_px(images, ctf))
    else:
        measured, source = particle_diameter_A / 2 / stack.pixel_size_A, "user"
    return Observations(
        stack=stack,
        sign=sign,
        scale_each=scale_each,
        background=background,
        noise_power=noise.clamp_min(1e-12 * float(total.max())),
        total_power=total,
        particle_radius_px=min(max(measured, 0.06 * box), 0.45 * box),
        shift_sd_px=mean_image_shift_sd_px(images, ctf) if nearly_round else 0.05 * box,
        radius_from=source,
    )


def particle_radius_px(images: Float[Tensor, "n box box"], ctf: Float[Tensor, "n box half"] | None) -> float:
    """Radius where the variance over images, low-passed, has fallen to a tenth of its largest excess.

    Images are multiplied by their CTF first, which brings back what defocus spread out. Shifts are in it: it bounds the
    particle from outside.
    """
    box = images.shape[-1]
    ky = torch.fft.fftfreq(box) * box
    kx = torch.fft.rfftfreq(box) * box
    size = (ky[:, None].square() + kx.square()).sqrt()
    transform = torch.fft.rfft2(images) * torch.exp(-0.5 * (size / max(box // 8, 4)).square())
    smooth = torch.fft.irfft2(transform if ctf is None else transform * ctf, s=(box, box))
    axis = torch.arange(box) - box // 2
    ring = (axis[:, None].square() + axis.square()).float().sqrt().round().long().clamp_max(box // 2)
    count = torch.bincount(ring.flatten(), minlength=box // 2 + 1)
    variance = smooth.square().mean(0).flatten().double()
    profile = torch.bincount(ring.flatten(), weights=variance, minlength=box // 2 + 1) / count
    excess = profile - profile[int(0.46 * box) : box // 2].mean()
    width = max(box // 24, 2)
    excess = torch.nn.functional.avg_pool1d(excess[None], width, stride=1)[0]
    above = torch.nonzero(excess[: int(0.46 * box)] > 0.1 * excess.max())[:, 0]
    return float(above[-1]) + 0.5 * width if len(above) else box / 4


def mean_image_radius_px(
    images: Float[Tensor, "n box box"], ctf: Float[Tensor, "n box half"] | None
) -> float:
    """Radius where the mean image, its CTF undone, falls to zero beyond its brightest ring, and a tenth more.

    Neighbours average to a constant, and the low frequencies that are missing leave a dark halo, so the crossing marks the
    edge. At the centre of the box for particles whose projections are all nearly the same disc.
    """
    box = images.shape[-1]
    mean = torch.fft.irfft2(_mean_transform(images, ctf) * _blur(box), s=(box, box)).flatten().double()
    axis = torch.arange(box) - box // 2
    ring = (
        (axis[:, None].square() + axis.square()).float().sqrt().round().long().clamp_max(box // 2).flatten()
    )
    profile = torch.bincount(ring, weights=mean) / torch.bincount(ring)
    outermost = int(0.45 * box)
    peak = int(profile[:outermost].argmax())
    below = torch.nonzero(profile[peak:outermost] < 0)[:, 0]
    return 1.1 * (peak + float(below[0])) if len(below) else 0.45 * box


def mean_image_shift_sd_px(
    images: Float[Tensor, "n box box"], ctf: Float[Tensor, "n box half"] | None
) -> float:
    """Root mean square shift per axis, in pixels, of the images against their mean image; 0.5 at least."""
    box = images.shape[-1]
    mean = _mean_transform(images, ctf) * _blur(box)
    match = (
        torch.fft.rfft2(images) * mean.conj() if ctf is None else torch.fft.rfft2(images) * ctf * mean.conj()
    )
    peak = torch.fft.irfft2(match, s=(box, box)).flatten(1).argmax(1)
    x, y = (peak % box + box // 2) % box - box // 2, (peak // box + box // 2) % box - box // 2
    shift = torch.stack((x, y), 1).float()
    near = shift[shift.norm(dim=1) < 0.2 * box]  # what is farther is a neighbour
    return max(float(near.square().mean()) ** 0.5, 0.5) if len(near) else 0.05 * box


def _mean_transform(images: Tensor, ctf: Tensor | None) -> Tensor:
    """rfft2 of the mean image, its CTF undone where it is more than noise."""
    transform = torch.fft.rfft2(images)
    return transform.mean(0) if ctf is None else (transform * ctf).mean(0) / (ctf.square().mean(0) + 0.05)


def _blur(box: int) -> Tensor:
    ky, kx = torch.fft.fftfreq(box) * box, torch.fft.rfftfreq(box) * box
    return torch.exp(-0.5 * (ky[:, None].square() + kx.square()) / max(box // 8, 4) ** 2)


def _shell_means(power: Float[Tensor, "box half"], box: int) -> Float[Tensor, "shells"]:
    ky = torch.fft.fftfreq(box) * box
    kx = torch.fft.rfftfreq(box) * box
    shell = (ky[:, None].square() + kx.square()).sqrt().round().long()
    inside = shell <= box // 2
    total = torch.bincount(shell[inside], weights=power[inside].double(), minlength=box // 2 + 1)
    return (total / torch.bincount(shell[inside], minlength=box // 2 + 1)).float()


def crop_images(transforms: Complex[Tensor, "n box half"], n: int) -> Float[Tensor, "n crop crop"]:
    """Images of n (even) pixels whose unnormalised transform is the middle of the given one.

    Grey values change by (box / n)^2; the transform does not.
    """
    box = transforms.shape[-2]
    if n % 2 or n > box:
        raise BadInput(f"crop_images: cannot crop {box} px to {n} px; give an even size that fits.")
    centre = box // 2
    middle = transforms[:, centre - n // 2 : centre + n // 2, : n // 2 + 1].clone()
    middle[:, 0] = 0
    middle[..., -1] = 0
    return torch.fft.fftshift(torch.fft.irfft2(torch.fft.ifftshift(middle, dim=-2), s=(n, n)), dim=(-2, -1))


def astigmatic_orders(ctf: CTF | None, radius: float, *, box: int, pixel_size_A: float) -> int:
    """How many harmonics of the squared CTF matter out to `radius`: 0 where the phase varies by less than 0.15 rad."""
    if ctf is None:
        return 0
    s2 = (radius / (box * pixel_size_A)) ** 2
    spread = (ctf.defocus_u_A - ctf.defocus_v_A).abs().quantile(0.95)
    phase = math.pi * 0.0197 * float(spread) / 2 * s2
    return 0 if phase < 0.15 else min(1 + int(phase), 4)


def support_mask(
    n: int, radius_px: float, *, centre_px: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Float[Tensor, "n n n"]:
    """A ball of `radius_px` about (x, y, z), its edge a tenth of the radius and at least 1.5 px wide on either side."""
    edge = max(0.1 * radius_px, 1.5)
    axis = torch.arange(n) - n // 2
    x, y, z = ((axis - c).square() for c in centre_px)
    size = (z[:, None, None] + y[:, None] + x).float().sqrt()
    return ((radius_px + edge - size) / (2 * edge)).clamp(0, 1)


__all__ = [
    "Contrast",
    "Observations",
    "astigmatic_orders",
    "contrast_of",
    "crop_images",
    "level",
    "observe",
    "particle_radius_px",
    "support_mask",
]
