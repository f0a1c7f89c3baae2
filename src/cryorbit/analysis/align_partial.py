"""Alignment of maps that share only a part: directions of the density's slope vote, and only one support counts.

A map and a fragment of it correlate less in the right place than two compact bodies put over each other. Two things
help. The search compares unit vectors along the slope of the smoothed density, so that every place inside the contour
has one vote however dense it is; these are the mean-shift directions of VESPER (Han et al., Nat. Commun. 12, 2021), for
the mean-shift vector of a Gaussian kernel is sigma^2 grad log(G_sigma * density). The refinement compares densities
within the support of the smaller map only, by their normalised correlation there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from cryorbit.analysis.align_refine import Motion
from cryorbit.analysis.align_search import Candidates, best_translation, ranked
from cryorbit.analysis.masks import automatic_mask, density_level
from cryorbit.analysis.spectrum import Spectrum, half_ball
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import index_grid, pixel_grid
from cryorbit.fourier.resample import fourier_pad
from cryorbit.geometry.directions import super_fibonacci
from cryorbit.geometry.rotations import rotvec_to_matrix

FIELD_KMAX = 10
"""Shells of the direction fields that are compared."""

_SMOOTHING_A = 4.62
"""Deviation of VESPER's effective Gaussian at its default of 16 A."""

_BATCH = 16
_FINER = 2
"""How much finer than its own grid a band-limited map is sampled before linear interpolation."""


def direction_field(volume: Volume, *, smoothing_A: float = _SMOOTHING_A) -> Float[Tensor, "3 n n n"]:
    """Unit vectors (x, y, z) along grad log(G * density) where the smoothed density is particle, zero elsewhere."""
    n = volume.box
    frequency = index_grid(n, ndim=3, device=volume.values.device, dtype=volume.values.dtype) / n
    sigma = smoothing_A / volume.pixel_size_A
    low = torch.exp(-2.0 * (math.pi * sigma) ** 2 * frequency.square().sum(-1))
    transform = torch.fft.rfftn(volume.values) * low
    smooth = torch.fft.irfftn(transform, s=volume.values.shape)
    # the Nyquist samples of an even box have no odd part
    odd = torch.where(frequency.abs() == 0.5, 0.0, frequency)
    slope = torch.stack(
        [torch.fft.irfftn(2j * math.pi * odd[..., axis] * transform, s=smooth.shape) for axis in range(3)]
    )
    length = slope.norm(dim=0).clamp_min(1e-12 * float(slope.abs().max()) + 1e-30)
    return slope / length * (smooth > density_level(smooth)).to(slope)


def search_fields(moving: Volume, reference: Volume, *, n_rotations: int = 720) -> Candidates:
    """Every translation for each of `n_rotations` rotations, scored by the sum of u_ref(x) . Q^T u_moving(Q x + c).

    The score is the sum over the lengths of the two fields: 1 for equal maps.
    """
    kmax = min(FIELD_KMAX, reference.box // 2 - 1)
    ours, theirs = direction_field(reference), direction_field(moving)
    spectrum = Spectrum.of_fields(theirs)
    points = half_ball(kmin=0.0, kmax=kmax, device=ours.device)
    q = points.to(ours)
    target, whole = Spectrum.of_fields(ours).sample(q), spectrum.sample(q)
    norm = 2.0 * (target.abs().square().sum() * whole.abs().square().sum()).sqrt().clamp_min(1e-30)
    size = 3 * kmax + kmax % 2
    rotations = super_fibonacci(n_rotations).to(ours)
    score, shift = [], []
    for some in rotations.split(_BATCH):
        values = spectrum.sample(q @ some.mT)
        turned = torch.einsum("kba,ap->bkp", some.to(target.dtype), target)
        value, where = best_translation((turned.conj() * values).sum(0), points, size=size)
        score.append(value / norm)
        shift.append((some @ where[..., None])[..., 0])
    return ranked(rotations, torch.cat(shift), torch.cat(score))


def support(volume: Volume) -> Volume | None:
    """Mask around a map's density, 8 A beyond it with a soft edge; None where none can be told from background."""
    try:
        return automatic_mask(volume, dilate_A=8.0, edge_A=8.0)
    except BadInput:
        return None


@dataclass(frozen=True, eq=False)
class Template:
    """A map inside a mask, and the other map sampled under it: x_other = rotation @ x + shift.

    Parameters
    ----------
    points
        Shape (p, 3): places inside the mask, as fractions of the box from its origin.
    values
        Density there, of weighted mean zero and weighted length one.
    weight
        The mask there.
    other
        Shape (1, 4, m, m, m): the other map and its slope (x, y, z) per box edge, on a finer grid.
    """

    points: Float[Tensor, "p 3"]
    values: Float[Tensor, "p"]
    weight: Float[Tensor, "p"]
    other: Float[Tensor, "1 4 m m m"]

    @classmethod
    def of(cls, volume: Volume, mask: Volume, other: Volume) -> Template:
        """Prepare; all three on the same grid."""
        inside = mask.values > 1e-3
        points = pixel_grid(volume.box, ndim=3, device=inside.device).to(volume.values)[inside] / volume.box
        weight = mask.values[inside].to(volume.values)
        values = volume.values[inside]
        values = values - (weight * values).sum() / weight.sum()
        values = values / (weight * values.square()).sum().sqrt().clamp_min(1e-30)
        fine = fourier_pad(other.values, _FINER * other.box, ndim=3)
        step = 0.5 * fine.shape[0]
        slopes = [step * (fine.roll(-1, axis) - fine.roll(1, axis)) for axis in (2, 1, 0)]
        return cls(points, values, weight, torch.stack([fine, *slopes])[None])

    def sampled(
        self, motion: Motion, *, slopes: bool
    ) -> tuple[Float[Tensor, "c k p"], Float[Tensor, "k p 3"]]:
        """The other map (and its slope) at the moved points; and the points turned but not shifted."""
        turned = self.points @ motion.rotation.mT
        m = self.other.shape[-1]
        index = (turned + motion.shift[:, None]) * m + m // 2
        grid = (2.0 * index / (m - 1) - 1.0).reshape(1, 1, 1, -1, 3)
        channels = self.other if slopes else self.other[:, :1]
        values = grid_sample(channels, grid, mode="bilinear", align_corners=True)[0, :, 0, 0]
        return values.reshape(len(values), *turned.shape[:-1]), turned

    def normalised(self, values: Float[Tensor, "k p"]) -> tuple[Float[Tensor, "k p"], Float[Tensor, "k"]]:
        """Values of weighted mean zero and length one, and what their length was."""
        mean = (values @ self.weight) / self.weight.sum()
        centred = values - mean[:, None]
        length = (centred.square() @ self.weight).sqrt().clamp_min(1e-30)
        return centred / length[:, None], length

    def correlation(self, motion: Motion) -> Float[Tensor, "k"]:
        """Normalised correlation inside the mask, -1 to 1."""
        values, _ = self.sampled(motion, slopes=False)
        return self.normalised(values[0])[0] @ (self.weight * self.values)

    def slopes(self, motion: Motion) -> tuple[Float[Tensor, "k 6"], Float[Tensor, "k 6 6"]]:
        """Gradient and Gauss-Newton matrix of the correlation for a turn on the left and then the shift."""
        sampled, turned = self.sampled(motion, slopes=True)
        unit, length = self.normalised(sampled[0])
        slope = sampled[1:].movedim(0, -1)
        jacobian = torch.cat([torch.linalg.cross(turned, slope), slope], -1) / length[:, None, None]
        w = self.weight[:, None]
        jacobian = jacobian - (w * jacobian).sum(1, keepdim=True) / self.weight.sum()
        jacobian = jacobian - unit[..., None] * (w * unit[..., None] * jacobian).sum(1, keepdim=True)
        gradient = (w * self.values[:, None] * jacobian).sum(1)
        return gradient.double(), (jacobian.mT @ (w * jacobian)).double()


def refine_masked(template: Template, start: Motion, *, steps: int) -> Motion:
    """Levenberg-Marquardt steps on the correlation inside the mask, from every start."""
    motion = Motion(start.rotation, start.shift, template.correlation(start))
    damping = torch.full_like(motion.score, 1e-2, dtype=torch.float64)
    for _ in range(steps):
        gradient, matrix = template.slopes(motion)
        diagonal = torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1) * damping[:, None] + 1e-12)
        scale = motion.score.double().clamp(0.1, 1.0)[:, None, None]
        change = torch.linalg.solve(scale * (matrix + diagonal), gradient).to(motion.shift)
        trial = Motion(
            rotvec_to_matrix(change[:, :3]) @ motion.rotation, motion.shift + change[:, 3:], motion.score
        )
        score = template.correlation(trial)
        better = score > motion.score
        motion = Motion(
            torch.where(better[:, None, None], trial.rotation, motion.rotation),
            torch.where(better[:, None], trial.shift, motion.shift),
            torch.where(better, score, motion.score),
        )
        damping = torch.where(better, damping / 4.0, damping * 8.0).clamp(1e-6, 1e6)
    return motion


def inverse(motion: Motion) -> Motion:
    """x_reference from x_moving, where the motion gave x_moving from x_reference."""
    rotation = motion.rotation.mT
    return Motion(rotation, -(rotation @ motion.shift[..., None])[..., 0], motion.score)


def distinct(motion: Motion, *, keep: int) -> Motion:
    """The best `keep` by score that are further than 10 degrees or a twentieth of the box from better ones."""
    order = motion.score.argsort(descending=True).tolist()
    chosen: list[int] = []
    for i in order:
        near = False
        for j in chosen:
            cosine = float((motion.rotation[i] * motion.rotation[j]).sum() - 1.0) / 2.0
            near |= (
                cosine > math.cos(math.radians(10.0))
                and float((motion.shift[i] - motion.shift[j]).norm()) < 0.05
            )
        if not near:
            chosen.append(i)
        if len(chosen) == keep:
            break
    return motion.take(torch.tensor(chosen, device=motion.score.device))


@dataclass(frozen=True, eq=False)
class Shared:
    """Where the smaller of two maps has density, in that map's frame.

    Parameters
    ----------
    mask
        Its support, or ones where neither map stands out of its background.
    of_moving
        Whether the smaller map is the moving one.
    """

    mask: Volume
    of_moving: bool

    @classmethod
    def between(cls, moving: Volume, reference: Volume) -> Shared:
        """Compare the supports of two maps on one grid."""
        found = {True: support(moving), False: support(reference)}
        sizes = {which: float(mask.values.sum()) for which, mask in found.items() if mask is not None}
        if not sizes:
            return cls(Volume(torch.ones_like(reference.values), reference.pixel_size_A), of_moving=False)
        smaller = min(sizes, key=lambda which: sizes[which])
        mask = found[smaller]
        assert mask is not None
        return cls(mask, of_moving=smaller)


def best_overlay(moving: Volume, reference: Volume, starts: Motion, *, shared: Shared) -> Motion:
    """The start that, refined under the mask of the smaller map, correlates best there; its score is that.

    All on one grid. Both maps should be `whitened`: by plain density, any two compact bodies agree well.
    """
    if shared.of_moving:
        return inverse(_refined_overlays(Template.of(moving, shared.mask, reference), inverse(starts)))
    return _refined_overlays(Template.of(reference, shared.mask, moving), starts)


def _refined_overlays(template: Template, starts: Motion) -> Motion:
    """All starts a few steps, the best eight different ones to the end, the best of those."""
    few = distinct(refine_masked(template, starts, steps=4), keep=8)
    found = refine_masked(template, few, steps=12)
    return found.take(found.score.argmax()[None])
