"""What is known of each image: its latent vector and its pose, as parameters and as Gauss-Newton posteriors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import Pose
from cryorbit.geometry.rotations import matrix_to_rotvec, rotvec_to_matrix
from cryorbit.inference.flex_likelihood import FlexLikelihood
from cryorbit.models.deformation import GaussianModel

_STEP_Z = 0.1
"""Finite difference of a latent coordinate, in standard deviations of its prior."""
_STEP_PX = 0.1
"""Finite difference of a pose: pixels that it moves the image, or the molecule at its lever."""


class RowTable:
    """A table with a row per image that Adam moves row by row: rows that a step does not see keep their moments.

    Parameters
    ----------
    values
        Shape (n, d); changed in place.
    """

    def __init__(self, values: Float[Tensor, "n d"]) -> None:
        self.values = values.clone()
        self.first, self.second = torch.zeros_like(values), torch.zeros_like(values)
        self.steps = torch.zeros(len(values))

    def step(self, rows: Int[Tensor, "b"], grad: Float[Tensor, "b d"], *, rate: float) -> None:
        """Move `rows` against their gradient (Kingma & Ba 2015, with a row's own count of steps)."""
        fade1, fade2 = 0.8, 0.95  # a row is seen once in an epoch: longer memories would outlast the training
        first = self.first[rows].lerp(grad, 1 - fade1)
        second = self.second[rows].lerp(grad.square(), 1 - fade2)
        steps = self.steps[rows] + 1
        self.first[rows], self.second[rows], self.steps[rows] = first, second, steps
        unbiased1 = first / (1 - fade1**steps)[:, None]
        unbiased2 = second / (1 - fade2**steps)[:, None]
        self.values[rows] -= rate * unbiased1 / (unbiased2.sqrt() + 1e-8)

    def state(self, name: str) -> dict[str, Any]:
        """All that `restore` needs, flat."""
        parts = ("values", "first", "second", "steps")
        return {f"{name}.{part}": getattr(self, part) for part in parts}

    def restore(self, name: str, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for part in ("values", "first", "second", "steps"):
            setattr(self, part, state[f"{name}.{part}"].clone())


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior of some images about its mode, a normal distribution.

    Parameters
    ----------
    z, precision
        Latent vectors (b, d) and their marginal precision (b, d, d), pose errors integrated out if poses move.
    pose
        Of the same images.
    misfit
        Half chi-square at the mode, nats.
    """

    z: Float[Tensor, "b d"]
    precision: Float[Tensor, "b d d"]
    pose: Pose
    misfit: Float[Tensor, "b"]


@dataclass(frozen=True, kw_only=True)
class PosePrior:
    """Normal priors of pose errors about the poses that were given."""

    angle_sd_rad: float
    shift_sd_A: float
    lever_A: float
    """Root mean square distance of the molecule from its centre, angstrom: how far a turn of a radian moves it."""


@torch.no_grad()
def latent_posterior(
    model: GaussianModel,
    likelihood: FlexLikelihood,
    rows: Int[Tensor, "b"],
    z: Float[Tensor, "b d"],
    pose: Pose,
    *,
    given: Pose | None = None,
    prior: PosePrior | None = None,
    steps: int = 1,
) -> Posterior:
    """Gauss-Newton steps from `z` (and `pose`) to the posterior's mode, and its curvature there (Laplace).

    The prior of z is the standard normal distribution. A step that does not raise the posterior is tried at a quarter of
    its length, then not taken. Derivatives are finite differences of images: d (and 5) more renderings per image.

    Parameters
    ----------
    given, prior
        Poses before any refinement and the spread of their errors; None: poses stay as they are.
    """
    data = likelihood.transforms(rows)
    render = _renderer(model, likelihood, rows)
    at = z if prior is None else torch.cat((z, torch.zeros(len(z), 5)), 1)
    centre, spread = _priors(z, pose, given, prior)
    base = pose
    values = render(at, base)
    objective = _objective(likelihood, values, data, at, centre, spread)
    information = torch.diag_embed((1 / spread.square()).expand_as(at))
    for _ in range(max(steps, 1)):
        jacobian = _jacobian(render, at, base, values, prior, pixel_size_A=likelihood.pixel_size_A)
        gradient = (
            likelihood.inner(jacobian, (data - values)[:, None])[..., 0] - (at - centre) / spread.square()
        )
        information = likelihood.inner(jacobian, jacobian) + torch.diag_embed(
            (1 / spread.square()).expand_as(at)
        )
        if steps == 0:
            break
        step = torch.linalg.solve(information, gradient[..., None])[..., 0]
        for share in (1.0, 0.25):
            trial = at + share * step
            moved = render(trial, base)
            found = _objective(likelihood, moved, data, trial, centre, spread)
            better = found < objective
            at = torch.where(better[:, None], trial, at)
            values = torch.where(better[:, None, None], moved, values)
            objective = torch.where(better, found, objective)
            step = torch.where(better[:, None], torch.zeros_like(step), step)
    d = z.shape[1]
    covariance = torch.linalg.inv(information)
    return Posterior(
        at[:, :d],
        torch.linalg.inv(covariance[:, :d, :d]),
        _moved(base, at[:, d:]) if prior is not None else base,
        likelihood.misfit(values, data),
    )


def _renderer(
    model: GaussianModel, likelihood: FlexLikelihood, rows: Tensor
) -> Callable[[Tensor, Pose], Tensor]:
    """From (z, turn, shift) of each image to its transform."""
    d = model.latent

    def render(at: Tensor, base: Pose) -> Tensor:
        pose = base if at.shape[1] == d else _moved(base, at[:, d:])
        return likelihood.model(model(at[:, :d]), pose, rows)

    return render


def _moved(pose: Pose, change: Float[Tensor, "b 5"]) -> Pose:
    """Poses turned by rotation vectors (radians, in the laboratory's frame) and shifted by angstrom."""
    return Pose(
        rotvec_to_matrix(change[:, :3]).to(pose.rotation) @ pose.rotation, pose.shift_A + change[:, 3:]
    )


def _priors(z: Tensor, pose: Pose, given: Pose | None, prior: PosePrior | None) -> tuple[Tensor, Tensor]:
    """Where the priors of (z, turn, shift) are centred, and their standard deviations."""
    if prior is None:
        return torch.zeros_like(z), torch.ones(z.shape[1])
    assert given is not None  # poses that move have a place they moved from
    turned = matrix_to_rotvec(given.rotation @ pose.rotation.mT).to(z)
    shifted = (given.shift_A - pose.shift_A).to(z)
    sd = [1.0] * z.shape[1] + [prior.angle_sd_rad] * 3 + [prior.shift_sd_A] * 2
    return torch.cat((torch.zeros_like(z), turned, shifted), 1), torch.tensor(sd)


def _objective(
    likelihood: FlexLikelihood, values: Tensor, data: Tensor, at: Tensor, centre: Tensor, spread: Tensor
) -> Tensor:
    return likelihood.misfit(values, data) + 0.5 * ((at - centre) / spread).square().sum(1)


def _jacobian(
    render: Callable[[Tensor, Pose], Tensor],
    at: Tensor,
    base: Pose,
    values: Tensor,
    prior: PosePrior | None,
    *,
    pixel_size_A: float,
) -> Tensor:
    """Derivatives of each image's transform by (z, turn, shift): forward differences."""
    total = at.shape[1]
    steps = torch.full((total,), _STEP_Z)
    if prior is not None:
        pixel = _STEP_PX * pixel_size_A
        steps[-5:-2], steps[-2:] = pixel / prior.lever_A, pixel
    columns = []
    for k in range(total):
        shifted = at.clone()
        shifted[:, k] += steps[k]
        columns.append((render(shifted, base) - values) / steps[k])
    return torch.stack(columns, 1)
