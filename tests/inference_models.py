"""Small search problems with every term known, and their log-likelihoods by the direct sum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryorbit.fourier.polar import RingGrid, from_circle, harmonics_to_circle, shift_phases
from cryorbit.inference.search import RingData, SearchPlan, Templates, make_templates, plan_search

F64 = torch.float64


@dataclass(frozen=True)
class RingProblem:
    """Images, templates and poses; `circle` holds the templates' harmonics in float64."""

    grid: RingGrid
    data: RingData
    slices: Tensor
    harmonics: Tensor
    plan: SearchPlan
    m_max: int

    def templates(self, *, astigmatic_orders: int = 0) -> Templates:
        return make_templates(self.slices, self.grid, m_max=self.m_max, astigmatic_orders=astigmatic_orders)

    def only(self, rows: slice) -> RingProblem:
        return replace(self, data=self.data[rows])


def _random_circle(n: int, grid: RingGrid, m_max: int, *, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    shape = (n, grid.n_radii, m_max + 1)
    parts = torch.complex(
        torch.randn(shape, generator=g, dtype=F64), torch.randn(shape, generator=g, dtype=F64)
    )
    parts[..., 0].imag.zero_()
    return parts / (1 + torch.arange(m_max + 1))


def random_problem(
    *, m_max: int, astigmatism_rad: float, kept: int | None = None, limit_images: bool = False
) -> RingProblem:
    """3 images, 5 views, 4 shifts, 28 in-plane angles; templates of orders 0 .. m_max, `kept` are searched.

    The squared CTF is sin^2(r^2 / 8 + i + astigmatism_rad r^2 / 36 cos 2(t - t_i)): its phase varies by
    +-astigmatism_rad along the last ring.
    """
    grid = RingGrid(20, 6, 48)
    g = torch.Generator().manual_seed(3)
    harmonics = _random_circle(5, grid, m_max, seed=1)
    slices = from_circle(harmonics_to_circle(harmonics, grid.n_angles))
    if limit_images:
        images = from_circle(harmonics_to_circle(_random_circle(3, grid, m_max, seed=2), grid.n_angles)) * 0.2
    else:
        shape = (3, grid.n_radii, grid.n_half)
        images = torch.complex(torch.randn(shape, generator=g), torch.randn(shape, generator=g)) * 0.02
    r2 = grid.radii()[:, None].square()
    angle = torch.arange(grid.n_half) * (2 * math.pi / grid.n_angles)
    which = torch.arange(3.0)[:, None, None]
    wave = astigmatism_rad * r2 / 36 * torch.cos(2 * (angle - which))
    power = torch.sin(r2 / 8 + which + wave).square() * 0.1
    shifts = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.3, 0.8], [0.4, -2.0]])
    # Bands narrow enough that shifted images keep to them, where a test wants that.
    phases = shift_phases(grid, shifts * (0.0 if limit_images else 1.0))
    prior = torch.log_softmax(torch.tensor([0.3, -0.5, 0.1, -1.0]), 0)
    order = m_max if kept is None else kept
    return RingProblem(
        grid,
        RingData(images.to(torch.complex64), power.contiguous()),
        slices.to(torch.complex64),
        harmonics,
        plan_search(grid, order, 28, phases, prior),
        order,
    )


def without_ctf_and_prior(problem: RingProblem, *, keep_ctf: bool = False) -> RingProblem:
    """The same with D = 0 unless kept, and a flat log prior of 0."""
    power = problem.data.ctf_power if keep_ctf else torch.zeros_like(problem.data.ctf_power)
    plan = replace(problem.plan, log_prior_shift=torch.zeros_like(problem.plan.log_prior_shift))
    return replace(problem, data=RingData(problem.data.filtered, power), plan=plan)


def turned_slices(problem: RingProblem, psi: float) -> Tensor:
    """T(R_psi k): the series evaluated at the sample angles plus psi, float64."""
    m = torch.arange(problem.harmonics.shape[-1], dtype=F64)
    return from_circle(
        harmonics_to_circle(problem.harmonics * torch.exp(1j * psi * m), problem.grid.n_angles)
    )


def brute_force_scores(problem: RingProblem) -> Tensor:
    """sum_k Re(Y conj T) - 1/2 sum_k D |T|^2 + log prior over the whole circle, pose by pose, float64."""
    shifted = problem.data.filtered.to(torch.complex128)[:, None] * problem.plan.phases.to(torch.complex128)
    power = problem.data.ctf_power.double()
    out = []
    for p in range(problem.plan.n_psi):
        turned = turned_slices(problem, 2 * math.pi * p / problem.plan.n_psi)
        data_term = 2 * torch.einsum("bsra,vra->bsv", shifted, turned.conj()).real
        norm_term = torch.einsum("bra,vra->bv", power, turned.abs().square())
        out.append(data_term - norm_term[:, None] + problem.plan.log_prior_shift.double()[:, None])
    return torch.stack(out)
