"""Molecules that move and that come and go: latent coordinates in, Gaussians of every conformation out.

A `GaussianModel` is a set of anchor Gaussians, a `Deformation` that displaces them and a gate on their amplitudes. All
families of deformations (`models.deformation_fields`) sit behind one call, `deformation(z) -> displacement`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.data import Gaussians
from cryorbit.errors import BadInput

DeformationName = Literal["basis", "parts", "mesh", "mlp", "parts+mlp", "none"]
_LEAST_PX, _MOST_PX = 0.4, 6.0
"""Standard deviations that training may reach, units: narrower ones are noise, wider ones background."""
_OPEN = 2.0
"""Logit of a gate at first: 88 % open, so that it can move both ways."""


class Deformation(nn.Module, ABC):
    """Displacements of n anchors as a function of a latent vector of `latent` numbers.

    Displacements are in units of `GaussianModel.unit_A`, so that steps of an optimiser mean the same for every molecule.
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    @abstractmethod
    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b n 3"]:
        """Displacements of all anchors for each latent vector."""


def coefficient_net(latent: int, out: int, *, width: int, last: float = 1.0) -> nn.Sequential:
    """`out` smooth functions of z: two hidden layers of `width`.

    Parameters
    ----------
    last
        The weights of the last layer are multiplied by it, so that a model may start near its anchors.
    """
    final = nn.Linear(width, out)
    with torch.no_grad():
        final.weight.mul_(last)
        final.bias.zero_()
    return nn.Sequential(nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), final)


class AmplitudeGate(nn.Module):
    """Which Gaussians are there: a factor per Gaussian, positive, of rank `rank` before the sigmoid.

    factor_j(z) = sigmoid(b_j + sum_k c_k(z) A_kj) / sigmoid(b), b the logit that all gates have at first: 1 at first, 0 for
    what is absent, at most 1 / sigmoid(b) = 1.13 times the anchor's amplitude, which is learned too.
    """

    def __init__(self, latent: int, n: int, *, rank: int, width: int) -> None:
        super().__init__()
        self.coefficients = coefficient_net(latent, rank, width=width)
        self.basis = nn.Parameter(0.1 * torch.randn(rank, n) / math.sqrt(rank))
        self.logit = nn.Parameter(torch.full((n,), _OPEN))

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b n"]:
        """The factor of every Gaussian for each latent vector."""
        opened = 1 / (1 + math.exp(-_OPEN))
        return torch.sigmoid(self.logit + self.coefficients(z) @ self.basis) / opened


class GaussianModel(nn.Module):
    """Anchor Gaussians, how they move and which of them are there.

    Parameters
    ----------
    anchors
        Isotropic Gaussians of one conformation with positive amplitudes.
    deformation
        Displaces them; None: nothing moves.
    gate
        Scales their amplitudes; None: all are always there.
    unit_A
        Length of one unit of displacement, angstrom: the pixel size.

    Raises
    ------
    BadInput
        If the anchors are anisotropic, of several conformations, none, or none of them is positive.
    """

    def __init__(
        self,
        anchors: Gaussians,
        *,
        deformation: Deformation | None,
        gate: AmplitudeGate | None,
        unit_A: float,
    ) -> None:
        super().__init__()
        if not anchors.isotropic or anchors.conformations is not None or len(anchors) == 0:
            raise BadInput(
                "GaussianModel: wanted isotropic anchors of one conformation. Fit them with fit_gaussians()."
            )
        if not bool((anchors.amplitude > 0).any()):
            raise BadInput(
                "GaussianModel: no anchor has a positive amplitude. Fit them to a map of light protein."
            )
        amplitude = anchors.amplitude.clamp_min(1e-4 * float(anchors.amplitude.max()))
        self.position = nn.Parameter(anchors.position_A / unit_A)
        self.log_amplitude = nn.Parameter(amplitude.log())
        self.log_width = nn.Parameter((anchors.width_A / unit_A).log())
        self.deformation, self.gate, self.unit_A = deformation, gate, unit_A

    @property
    def latent(self) -> int:
        """Length of a latent vector; 1 for a model that does not use it."""
        if self.deformation is not None:
            return self.deformation.latent
        first = None if self.gate is None else self.gate.coefficients[0]
        return first.in_features if isinstance(first, nn.Linear) else 1

    def anchors(self) -> Gaussians:
        """The Gaussians before any deformation."""
        width = self.log_width.exp().clamp(_LEAST_PX, _MOST_PX)
        return Gaussians(self.position * self.unit_A, self.log_amplitude.exp(), width * self.unit_A)

    def forward(self, z: Float[Tensor, "b latent"]) -> Gaussians:
        """The Gaussians at each latent vector; widths are shared by all conformations."""
        anchors = self.anchors()
        position = anchors.position_A.expand(len(z), -1, -1)
        if self.deformation is not None:
            position = position + self.unit_A * self.deformation(z)
        amplitude = anchors.amplitude.expand(len(z), -1)
        if self.gate is not None:
            amplitude = amplitude * self.gate(z)
        return Gaussians(position, amplitude, anchors.width_A)


def make_gaussian_model(
    anchors: Gaussians,
    name: DeformationName | str,
    *,
    latent: int,
    unit_A: float,
    rank: int = 32,
    parts: int = 6,
    nodes: int = 100,
    width: int = 64,
    gates: bool = True,
) -> GaussianModel:
    """A model with fresh weights around anchors.

    Parameters
    ----------
    name
        "basis": a low-rank linear basis with learned coefficients; "parts": rigid parts with soft assignment; "mesh": a
        coarse set of nodes; "mlp": an MLP per Gaussian, conditioned by z; "parts+mlp": both; "none": nothing moves.
    rank
        Modes of "basis" and of the gates.
    parts, nodes
        Of "parts" and of "mesh".
    width
        Of hidden layers.
    gates
        Whether Gaussians may come and go.

    Raises
    ------
    BadInput
        If the name is unknown.
    """
    from cryorbit.models import deformation_fields as fields

    if name not in get_args(DeformationName):
        raise BadInput(f"Deformation {name!r} is not one of {', '.join(get_args(DeformationName))}.")
    position = anchors.position_A / unit_A
    made: Deformation | None = None
    if name == "basis":
        made = fields.BasisDeformation(latent, len(anchors), rank=rank, width=width)
    elif name == "mesh":
        made = fields.MeshDeformation(latent, position, nodes=nodes, rank=rank, width=width)
    elif name == "mlp":
        made = fields.FieldDeformation(latent, position, width=width)
    elif name == "parts":
        made = fields.PartsDeformation(latent, position, parts=parts, width=width)
    elif name == "parts+mlp":
        first = fields.PartsDeformation(latent, position, parts=parts, width=width)
        made = fields.SumDeformation(first, fields.FieldDeformation(latent, position, width=width))
    gate = AmplitudeGate(latent, len(anchors), rank=rank, width=width) if gates else None
    return GaussianModel(anchors, deformation=made, gate=gate, unit_A=unit_A)
