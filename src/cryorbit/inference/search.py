"""The exact posterior of images over viewing direction, in-plane angle and shift, as a group transform.

With X the transform of an image on rings, C its CTF, s^2 the noise power and T^v the slice of the map seen from direction
v, the log-likelihood of (v, psi, t), up to a constant of the image, is

    S_v(psi, t) = sum_k Y_t(k) T^v(R_psi k) - 1/2 sum_k D(k) |T^v(R_psi k)|^2,
    Y_t = C X e^{2 pi i k.t} / s^2,   D = C^2 / s^2.

The in-plane angle is a group action: with circular harmonics on each ring the first sum is an inverse Fourier series over m
of small matrix products over the radius, Y_m conj T^v_m. Images are multiplied by the CTF, never the templates, so the
templates are shared by all images. A radial D leaves only m = 0 in the second sum; astigmatism adds the harmonics
m = 2, 4, ... of D against those of |T|^2, exact up to the number kept. The maximisation step is the adjoint: averaging
images per direction in the same ring space, so that a few hundred slices are inserted in 3D and not one per image and pose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.fourier.polar import RingGrid, circle_to_harmonics, from_circle, harmonics_to_circle, to_circle
from cryorbit.inference.effort import count_evaluations

FLOOR = -60.0
"""Least logarithm of a weight: far below, exponentials are subnormal numbers, which are slow, and they add nothing."""


@dataclass(frozen=True, eq=False)
class RingData:
    """Images ready for the search: Y = w C X / s^2 and D = w C^2 / s^2 on the half rings, w the area of a sample."""

    filtered: Complex[Tensor, "n r a"]
    ctf_power: Float[Tensor, "n r a"]

    def __len__(self) -> int:
        return self.filtered.shape[0]

    def __getitem__(self, index: slice | Tensor) -> RingData:
        return RingData(self.filtered[index], self.ctf_power[index])


@dataclass(frozen=True, eq=False)
class Templates:
    """Slices of the map on rings, one per viewing direction, as matrices of circular harmonics."""

    grid: RingGrid
    order: Int[Tensor, "m"]
    """The circular orders in the order stored: even ones first."""
    matrix: Float[Tensor, "m r2 v"]
    """Real parts of the harmonics over r, then imaginary parts."""
    power: Float[Tensor, "v r"]
    """sum over the circle of |T|^2."""
    power_harmonics: Float[Tensor, "e r2 v"]
    """Harmonics m = 2, 4, ... of |T|^2 on the circle, as `matrix`; e = 0 for radial CTFs."""

    @property
    def n_views(self) -> int:
        """Number of viewing directions."""
        return self.matrix.shape[2]

    def views(self, start: int, stop: int) -> Templates:
        """Those of the directions start .. stop, stored on their own."""
        part = slice(start, stop)
        return Templates(
            self.grid,
            self.order,
            self.matrix[..., part].contiguous(),
            self.power[part],
            self.power_harmonics[..., part].contiguous(),
        )


def circular_orders(m_max: int) -> Int[Tensor, "m"]:
    """0, 2, 4, .. then 1, 3, 5, ..: the in-plane half turn then only changes the sign of the second block."""
    return torch.cat((torch.arange(0, m_max + 1, 2), torch.arange(1, m_max + 1, 2)))


def stack_parts(harmonics: Complex[Tensor, "n r m"]) -> Float[Tensor, "m r2 n"]:
    """Harmonics as real matrices (order, (real over r, imaginary over r), n)."""
    return torch.cat((harmonics.real, harmonics.imag), 1).permute(2, 1, 0).contiguous()


def make_templates(
    slices: Complex[Tensor, "v r a"], grid: RingGrid, *, m_max: int, astigmatic_orders: int = 0
) -> Templates:
    """Matrices for `score` from slices of the map on the half rings.

    Parameters
    ----------
    slices
        Transform of the map on the plane of each viewing direction (in-plane angle 0).
    m_max
        Highest circular order kept. A particle of radius a pixels in a box of L needs about 2 pi r a / L at ring r.
    astigmatic_orders
        How many of the orders 2, 4, .. of the squared CTF to keep in the norm term.
    """
    circle = to_circle(slices)
    harmonics = circle_to_harmonics(circle, m_max)
    order = circular_orders(m_max)
    power = torch.cat(2 * [slices.abs().square()], -1)
    extra = circle_to_harmonics(power, 2 * astigmatic_orders)[..., 2::2]
    return Templates(
        grid, order, stack_parts(harmonics[..., order]), circle.square().sum(-1), stack_parts(extra)
    )


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """What the scores are taken over: in-plane angles and shifts, and the matrices made from them."""

    n_psi: int
    phases: Complex[Tensor, "s r a"]
    log_prior_shift: Float[Tensor, "s"]
    transform: Float[Tensor, "m2 a2"]
    """To the harmonics of each order as pairs (Re, Im), from a half ring as such pairs."""
    even: Float[Tensor, "half_psi e2"]
    """The inverse Fourier series over even orders on half a turn of the in-plane angle."""
    odd: Float[Tensor, "half_psi o2"]
    even_adjoint: Float[Tensor, "e2 half_psi"]
    odd_adjoint: Float[Tensor, "o2 half_psi"]

    @property
    def n_shifts(self) -> int:
        """Number of trial shifts."""
        return self.phases.shape[0]

    @property
    def n_orders(self) -> int:
        """Number of circular orders."""
        return self.transform.shape[0] // 2


def plan_search(
    grid: RingGrid,
    m_max: int,
    n_psi: int,
    phases: Complex[Tensor, "s r a"],
    log_prior_shift: Float[Tensor, "s"],
) -> SearchPlan:
    """Matrices of the inverse Fourier series over the order, split into even and odd orders."""
    order = circular_orders(m_max).double()
    psi = torch.arange(n_psi // 2, dtype=torch.float64) * (2 * math.pi / n_psi)
    angle = psi[:, None] * order
    series = torch.stack((angle.cos(), -angle.sin()), -1).reshape(n_psi // 2, -1).float()
    # Parseval over n_angles samples: 1 / n_angles for order 0, twice that for the others and their mirror orders.
    weight = torch.full((len(order), 2), 2.0 / grid.n_angles)
    weight[0] = 1.0 / grid.n_angles
    series_out = series * weight.flatten()
    n_even = 2 * (m_max // 2 + 1)
    return SearchPlan(
        n_psi=n_psi,
        phases=phases,
        log_prior_shift=log_prior_shift,
        transform=_ring_transform(grid, order),
        even=series_out[:, :n_even].contiguous(),
        odd=series_out[:, n_even:].contiguous(),
        even_adjoint=series[:, :n_even].T.contiguous(),
        odd_adjoint=series[:, n_even:].T.contiguous(),
    )


def _ring_transform(grid: RingGrid, order: Float[Tensor, "m"]) -> Float[Tensor, "m2 a2"]:
    """C = Re + Im on the half ring, Re - Im half a turn on, times exp(-i m t): as one matrix."""
    angle = order[:, None] * torch.arange(grid.n_half, dtype=torch.float64) * (2 * math.pi / grid.n_angles)
    wave = torch.stack((angle.cos(), -angle.sin()), 1)  # m, 2, a
    half_turn = (1 - 2 * (order % 2))[:, None, None]
    both = torch.stack((wave * (1 + half_turn), wave * (1 - half_turn)), -1)
    return both.reshape(2 * len(order), grid.n_angles).float()


def image_rows(data: RingData, plan: SearchPlan) -> Float[Tensor, "b m s2 r2"]:
    """Harmonics of the shifted images as rows: of each image and order, by shift, [Yr, Yi], then [-Yi, Yr]."""
    b, r, a = data.filtered.shape
    s = plan.n_shifts
    shifted = torch.view_as_real(data.filtered[:, None] * plan.phases).view(b, s * r, 2 * a)
    real, imag = (plan.transform @ shifted.mT).view(b, -1, 2, s, r).unbind(2)
    out = real.new_empty(b, real.shape[1], 2, s, 2, r)
    out[:, :, 0, :, 0] = real
    out[:, :, 0, :, 1] = imag
    torch.neg(imag, out=out[:, :, 1, :, 0])
    out[:, :, 1, :, 1] = real
    return out.view(b, -1, 2 * s, 2 * r)


def image_matrix(data: RingData, plan: SearchPlan) -> Float[Tensor, "m bs2 r2"]:
    """`image_rows` of all images together: for each order the (image, shift) rows [Yr, Yi], then [-Yi, Yr]."""
    rows = image_rows(data, plan)
    b, m, _, r2 = rows.shape
    return rows.view(b, m, 2, plan.n_shifts, r2).permute(1, 2, 0, 3, 4).reshape(m, -1, r2)


def score(
    data: RingData, rows: Float[Tensor, "m bs2 r2"], plan: SearchPlan, templates: Templates
) -> Float[Tensor, "psi b s v"]:
    """Log-likelihood plus log prior of every pose, up to a constant per image."""
    b, s, v = len(data), plan.n_shifts, templates.n_views
    count_evaluations(b * plan.n_psi * s * v, frequencies=templates.grid.half_plane_pixels)
    product = torch.bmm(rows, templates.matrix)  # m, 2 b s, v
    norm = norm_harmonics(data, templates)
    blocks = product.view(-1, 2, b, s, v)
    blocks[0, 0] += norm[0, 0][:, None, :] + plan.log_prior_shift[None, :, None] * templates.grid.n_angles
    for e in range(1, norm.shape[0]):
        blocks[e] += norm[e][:, :, None, :]
    flat = product.view(product.shape[0] * 2, b * s * v)
    n_even = plan.even.shape[1]
    even = plan.even @ flat[:n_even]
    odd = plan.odd @ flat[n_even:]
    out = torch.empty(2, *even.shape, dtype=even.dtype, device=even.device)
    torch.add(even, odd, out=out[0])
    torch.sub(even, odd, out=out[1])
    return out.view(plan.n_psi, b, s, v)


def norm_harmonics(data: RingData, templates: Templates) -> Float[Tensor, "e c b v"]:
    """-1/2 sum D |T|^2 as a series in the in-plane angle: orders 0, 2, 4, .. by (real, imaginary)."""
    n_extra = templates.power_harmonics.shape[0]
    radial = data.ctf_power.mean(-1)
    # Times n_angles, which the series divides by again; the same goes for the other orders.
    zero = radial @ (templates.power.T * (-0.5 * templates.grid.n_angles))
    out = zero.new_zeros(n_extra + 1, 2, *zero.shape)
    out[0, 0] = zero
    if n_extra:
        circle = torch.cat(2 * [data.ctf_power.expand(-1, -1, templates.grid.n_half)], -1)
        extra = circle_to_harmonics(circle, 2 * n_extra)[..., 2::2]
        real, imag = extra.real.permute(2, 0, 1), extra.imag.permute(2, 0, 1)
        scale = -0.5
        out[1:, 0] = scale * torch.bmm(torch.cat((real, imag), -1), templates.power_harmonics)
        out[1:, 1] = scale * torch.bmm(torch.cat((-imag, real), -1), templates.power_harmonics)
    return out


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior of a few images over all poses of the plan."""

    probability: Float[Tensor, "psi b s v"]
    log_evidence: Float[Tensor, "b"]
    """log of the mean over rotations, and the sum over shifts (whose prior sums to 1), of exp(score)."""
    best: Int[Tensor, "b"]
    """Flat index (psi, s, v) of the most probable pose."""
    best_probability: Float[Tensor, "b"]
    entropy: Float[Tensor, "b"]


def normalise(scores: Float[Tensor, "psi b s v"]) -> Posterior:
    """Softmax over poses, in place: `scores` becomes the probability."""
    p, b, s, v = scores.shape
    per_psi = scores.amax((2, 3))  # psi, b
    row = per_psi.argmax(0)
    peak = per_psi.amax(0)
    each = torch.arange(b, device=scores.device)
    best = row * (s * v) + scores[row, each].reshape(b, -1).argmax(1)
    energy = scores.sub_(peak[None, :, None, None]).clamp_(min=FLOOR)
    weight = energy.exp()
    total = weight.sum((0, 2, 3))
    if b == 1:
        mean_energy = torch.dot(weight.view(-1), energy.view(-1))[None] / total
    else:
        mean_energy = (weight * energy).sum((0, 2, 3)) / total
    weight /= total[None, :, None, None]
    return Posterior(weight, peak + total.log() - math.log(p * v), best, 1 / total, total.log() - mean_energy)


@dataclass(eq=False)
class SliceSums:
    """Numerator and denominator of the map, averaged per viewing direction in ring space."""

    numerator: Float[Tensor, "m v r2"]
    denominator: Float[Tensor, "v r e"]
    """Harmonics 0 and (real, imaginary) of 2, 4, .. of the squared CTF, turned into the template's frame."""

    @classmethod
    def zeros(cls, templates: Templates) -> SliceSums:
        """Empty sums."""
        m, r2, v = templates.matrix.shape
        like = templates.matrix
        extra = templates.power_harmonics.shape[0]
        return cls(like.new_zeros(m, v, r2), like.new_zeros(v, r2 // 2, 1 + 2 * extra))

    @classmethod
    def of_blocks(cls, parts: list[SliceSums]) -> SliceSums:
        """Sums over all views from those of their blocks."""
        return cls(torch.cat([p.numerator for p in parts], 1), torch.cat([p.denominator for p in parts]))

    def of_views(self, count: int) -> SliceSums:
        """Empty sums of the same kind over `count` views."""
        m, _, r2 = self.numerator.shape
        _, r, e = self.denominator.shape
        return SliceSums(self.numerator.new_zeros(m, count, r2), self.denominator.new_zeros(count, r, e))

    def add_views(self, other: SliceSums, chosen: Int[Tensor, "k"], views: Int[Tensor, "k"]) -> None:
        """Add the chosen ones among the sums of `other` to those of `views`, in place."""
        self.numerator.index_add_(1, views, other.numerator[:, chosen])
        self.denominator.index_add_(0, views, other.denominator[chosen])

    def add(self, other: SliceSums) -> None:
        """Merge the sums of other images, in place."""
        self.numerator += other.numerator
        self.denominator += other.denominator


def accumulate(
    sums: SliceSums,
    posterior: Float[Tensor, "psi b s v"],
    data: RingData,
    rows: Float[Tensor, "m bs2 r2"],
    plan: SearchPlan,
) -> None:
    """Add images weighted by their posterior to the sums: the adjoint of `score`."""
    p, b, s, v = posterior.shape
    mass = posterior.sum(0)  # b, s, v
    keep = torch.nonzero(mass.sum(-1).reshape(-1) > 1e-4)[:, 0]
    chosen = posterior.view(p, b * s, v)[:, keep]
    first, second = chosen[: p // 2], chosen[p // 2 :]
    k = keep.shape[0]
    if not k:
        return
    total = (first + second).reshape(p // 2, k * v)
    difference = (first - second).reshape(p // 2, k * v)
    turned = torch.cat((plan.even_adjoint @ total, plan.odd_adjoint @ difference)).view(-1, 2 * k, v)
    chosen_rows = rows.view(rows.shape[0], 2, b * s, -1)[:, :, keep].reshape(rows.shape[0], 2 * k, -1)
    sums.numerator.baddbmm_(turned.transpose(1, 2), chosen_rows)
    per_view = mass.sum(1)  # b, v
    sums.denominator[:, :, 0] += per_view.T @ data.ctf_power.mean(-1)
    n_extra = (sums.denominator.shape[2] - 1) // 2
    if n_extra:
        _accumulate_astigmatic(sums, turned.view(-1, 2, k, v)[1 : n_extra + 1], keep // s, data, n_extra)


def _accumulate_astigmatic(
    sums: SliceSums, turned: Tensor, image: Tensor, data: RingData, n_extra: int
) -> None:
    a = 2 * data.filtered.shape[-1]
    circle = torch.cat(2 * [data.ctf_power.expand(-1, -1, a // 2)], -1)
    extra = circle_to_harmonics(circle, 2 * n_extra)[..., 2::2][image]  # k, r, e
    for e in range(n_extra):
        c, d = turned[e, 0], turned[e, 1]  # k, v
        x, y = extra[..., e].real, extra[..., e].imag
        sums.denominator[:, :, 1 + 2 * e] += c.T @ x - d.T @ y
        sums.denominator[:, :, 2 + 2 * e] += d.T @ x + c.T @ y


def sums_to_rings(
    sums: SliceSums, grid: RingGrid, order: Int[Tensor, "m"]
) -> tuple[Complex[Tensor, "v r a"], Float[Tensor, "v r a"]]:
    """Numerator and denominator as samples on the half rings of each direction's plane."""
    m, v, r2 = sums.numerator.shape
    parts = sums.numerator.view(m, v, 2, r2 // 2)
    harmonics = torch.zeros(v, r2 // 2, m, dtype=torch.complex64, device=parts.device)
    harmonics[..., order] = torch.complex(parts[:, :, 0], parts[:, :, 1]).permute(1, 2, 0)
    numerator = from_circle(harmonics_to_circle(harmonics, grid.n_angles))
    zero = sums.denominator[:, :, :1]
    n_extra = (sums.denominator.shape[2] - 1) // 2
    if not n_extra:
        return numerator, zero.expand(-1, -1, grid.n_half)
    angle = torch.arange(grid.n_half, device=zero.device) * (2 * math.pi / grid.n_angles)
    e = 2 * torch.arange(1, n_extra + 1, device=zero.device)
    phase = angle[:, None] * e
    real, imag = sums.denominator[:, :, 1::2], sums.denominator[:, :, 2::2]
    wave = (real @ phase.cos().T - imag @ phase.sin().T) * (2 / grid.n_angles)
    return numerator, (zero + wave).clamp_min(0)
