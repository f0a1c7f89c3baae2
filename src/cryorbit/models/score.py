"""Denoising as a way to learn a distribution: preconditioning, loss and noise levels of training (Karras et al. 2022, EDM).

A denoiser gives D(x; s), the mean of the clean x0 given x = x0 + s n with n of unit variance; (D(x; s) - x) / s^2 is then
the gradient of the log density of x (Tweedie). A network F is wrapped so that its input and its target have unit variance
at every level of noise:

    D(x; s) = c_skip x + c_out F(c_in x; c_noise)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cryorbit.errors import BadInput

_WAVES = (0.25, 0.5, 1.0, 2.0)
LEVEL_FEATURES = 2 * len(_WAVES) + 1


@runtime_checkable
class Denoiser(Protocol):
    """D(x; sigma), the mean of the clean x given the noisy one; its conditions are bound already."""

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the clean x, which levels of noise are measured against."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate of the clean x, of its shape; `sigma` has shape (batch,)."""
        ...


@dataclass(frozen=True, eq=False)
class Preconditioning:
    """The four coefficients, each of the shape of `sigma` (table 1 of Karras et al. 2022)."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def preconditioning(
    sigma: Float[Tensor, "*shape"], sigma_data: float | Float[Tensor, "*shape"]
) -> Preconditioning:
    """c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2), c_noise = ln(s / d) / 4.

    d is the standard deviation of the data. The paper takes ln(s) / 4; in units of d it does not depend on the unit of x.

    >>> c = preconditioning(torch.tensor([0.0, 1.0]), 1.0)
    >>> c.skip.tolist(), c.out.tolist()[0]
    ([1.0, 0.5], 0.0)
    """
    total = sigma**2 + sigma_data**2
    return Preconditioning(
        sigma_data**2 / total,
        sigma * sigma_data / total.sqrt(),
        total.rsqrt(),
        torch.log((sigma / sigma_data).clamp_min(1e-8)) / 4,
    )


def loss_weight(
    sigma: Float[Tensor, "*shape"], sigma_data: float | Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """(s^2 + d^2) / (s d)^2 = 1 / c_out^2: an error of the network weighs the same at every level."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def level_features(log_level: Float[Tensor, "b"]) -> Float[Tensor, "b features"]:
    """Smooth features of ln(s / d), which networks are told the level of noise by; `LEVEL_FEATURES` of them."""
    angle = log_level[:, None] * torch.tensor(_WAVES, dtype=log_level.dtype, device=log_level.device)
    return torch.cat((angle.sin(), angle.cos(), log_level[:, None] / 4), dim=1)


@dataclass(frozen=True, kw_only=True)
class TrainingNoise:
    """Levels of noise to train at: ln(sigma / sigma_data) is normal.

    The paper's P_mean = -1.2 at sigma_data = 0.5 is a centre of -0.5 here.
    """

    centre: float = -0.5
    """Mean of ln(sigma / sigma_data)."""
    spread: float = 1.2
    """Its standard deviation."""

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise BadInput(f"TrainingNoise: a spread of {self.spread} is not positive. Give one near 1.")

    def draw(self, sigma_data: Float[Tensor, "b"], *, generator: torch.Generator) -> Float[Tensor, "b"]:
        """One level per sample, in the unit of `sigma_data`.

        Drawn in strata: the batch covers the distribution evenly, which lowers the spread of its mean loss.
        """
        n = len(sigma_data)
        at = torch.randperm(n, generator=generator) + torch.rand(n, generator=generator, dtype=torch.float64)
        normal = torch.special.ndtri((at / n).clamp(1e-9, 1 - 1e-9))
        return sigma_data * torch.exp(self.centre + self.spread * normal).to(sigma_data)


def denoising_loss(
    denoiser: Denoiser,
    clean: Float[Tensor, "b ..."],
    noise: Float[Tensor, "b ..."],
    sigma: Float[Tensor, "b"],
    *,
    sigma_data: float | Float[Tensor, "b"] | None = None,
    mask: Bool[Tensor, "b ..."] | None = None,
) -> Float[Tensor, "b"]:
    """Weighted mean square error of D(clean + sigma noise; sigma), per sample.

    1 for a network that says nothing (F = 0) where the data are white, whatever the level.

    Parameters
    ----------
    noise
        Of unit variance, as large as `clean`.
    sigma_data
        Per sample, where samples differ; the denoiser's own otherwise.
    mask
        Of shape (b, ...) as `clean` or with its last axes left out: what counts. All of it if None.
    """
    wide = sigma.view(-1, *[1] * (clean.dim() - 1))
    error = (denoiser(clean + wide * noise, sigma) - clean).square()
    counts = torch.ones_like(error)
    if mask is not None:
        counts = counts * mask.reshape(*mask.shape, *[1] * (clean.dim() - mask.dim()))
    mean = (error * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)
    return loss_weight(sigma, denoiser.sigma_data if sigma_data is None else sigma_data) * mean


class MovingAverage:
    """The exponential moving average of a network's weights: what one samples with.

    In the first steps the average is over fewer: decay_t = min(decay, (1 + t) / (10 + t)).
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise BadInput(
                f"MovingAverage: a decay of {decay} is not in 0 to 1. Give 0.999, or 0 for no average."
            )
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for mean, now in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - decay)
        for mean, now in zip(self.network.buffers(), network.buffers(), strict=True):
            mean.copy_(now)

    def state(self, name: str) -> dict[str, Tensor | int]:
        """Flat entries under `name`."""
        return {
            f"{name}.steps": self.steps,
            **{f"{name}.weight.{k}": v for k, v in self.network.state_dict().items()},
        }

    def restore(self, name: str, state: dict[str, Tensor | int]) -> None:
        """The reverse of `state`."""
        start = f"{name}.weight."
        self.network.load_state_dict(
            {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        )
        self.steps = int(state[f"{name}.steps"])
