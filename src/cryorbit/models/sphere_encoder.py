"""Encoders that predict a distribution over rotations on a grid: Image2Sphere, and the slice encoder by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction
from cryorbit.models.slice_encoder import SliceEncoder, SliceSettings
from cryorbit.models.so3_losses import n_cells
from cryorbit.nn.so3_conv import HalfSphereLift, RotationActivation, RotationConv, RotationReadout, SphereConv


@dataclass(frozen=True, kw_only=True)
class I2SSettings:
    """How an Image2Sphere encoder is built."""

    name: Literal["i2s"] = "i2s"
    box: int = 32
    """Side of the images, pixels."""
    width: float = 1.0
    """Channels relative to 64 on the sphere and 8 on the rotations."""
    order: int = 2
    """Of the grid of rotations: spacing 60 / 2^order degrees."""
    l_max: int = 6
    """Degree of the harmonics: 4 in the poster, 6 in the paper."""
    resolution: int = 10
    """Of the grid of the non-linearity: values of beta; twice as many of the two other angles."""
    lift_order: int = 2
    """HEALPix order of the points of the half sphere."""
    support: Literal["full", "local"] = "local"
    """Of the filters on the rotations."""


class I2SEncoder(PoseEncoder):
    """CNN, half-sphere lift, sphere convolution, ReLU on the rotations, rotation convolution, logits on the grid.

    Only as equivariant as its CNN and its grids: turns of the image are learned, not built in.
    """

    grid: Tensor

    def __init__(self, settings: I2SSettings) -> None:
        super().__init__()
        self.settings, self.how, self.box = settings, settings, settings.box
        channels, rotations = max(4, round(64 * settings.width)), max(1, round(8 * settings.width))
        self.trunk = trunk_cnn(settings.box, channels)
        self.lift = HalfSphereLift(map_size(settings.box), l_max=settings.l_max, order=settings.lift_order)
        self.sphere = SphereConv(channels, rotations, l_max=settings.l_max)
        self.activation = RotationActivation(l_max=settings.l_max, resolution=settings.resolution)
        self.rotations = RotationConv(rotations, 1, l_max=settings.l_max, support=settings.support)
        self.readout = RotationReadout(l_max=settings.l_max, order=settings.order)
        self.shift = nn.Linear(channels, 2)
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)
        self.register_buffer("grid", so3_grid(settings.order).reshape(-1, 3, 3), persistent=False)

    def forward(self, images: Float[Tensor, "b h h"]) -> PosePrediction:
        """Logits on the grid of rotations; one shift per image."""
        self.check_box(images)
        cells = n_cells(self.how.order)
        scale = images.flatten(1).std(1).clamp_min(1e-12)[:, None, None]
        features = self.trunk((images / scale)[:, None])
        blocks = self.activation(self.sphere(self.lift(features)))
        logits = self.readout(self.rotations(blocks)[:, 0])
        shift = self.shift(features.mean((2, 3)))
        grid = self.grid.to(logits).expand(len(images), -1, 3, 3)
        return PosePrediction(grid, logits, shift[:, None].expand(-1, cells, 2), 1 / cells)


def map_size(box: int) -> int:
    """Edge of the feature map of `trunk_cnn`: the box halved until it is at most 10."""
    while box > 10:
        box = (box + 1) // 2
    return box


def trunk_cnn(box: int, channels: int) -> nn.Sequential:
    """Strided 3 x 3 convolutions with group norm, down to `map_size(box)`, then 1 x 1 to `channels`."""
    layers: list[nn.Module] = []
    inner, size = 1, box
    halvings = max(1, math.ceil(math.log2(max(box, 11) / 10)))
    for level in range(halvings):
        outer = max(8, channels // 2 ** (halvings - 1 - level))
        stride = 2 if size > 10 else 1
        layers += [
            nn.Conv2d(inner, outer, 5 if level == 0 else 3, stride=stride, padding=2 if level == 0 else 1)
        ]
        layers += [nn.GroupNorm(math.gcd(outer, 4), outer), nn.SiLU(), nn.Conv2d(outer, outer, 3, padding=1)]
        layers += [nn.GroupNorm(math.gcd(outer, 4), outer), nn.SiLU()]
        inner, size = outer, (size + 1) // 2 if stride == 2 else size
    layers.append(nn.Conv2d(inner, channels, 1))
    return nn.Sequential(*layers)


def make_sphere_encoder(
    name: Literal["i2s", "slice"], *, box: int, width: float = 1.0, hypotheses: int = 1, **options: Any
) -> PoseEncoder:
    """An encoder on the grid of rotations with fresh weights; `options` are fields of its settings.

    `hypotheses` is taken and ignored: there is one per cell.
    """
    del hypotheses
    options.pop("name", None)
    try:
        if name == "slice":
            return SliceEncoder(SliceSettings(box=box, width=width, **options))
        return I2SEncoder(I2SSettings(box=box, width=width, **options))
    except TypeError as error:
        raise BadInput(f"Encoder {name!r}: {error}. Give fields of its settings only.") from error


__all__ = ["I2SEncoder", "I2SSettings", "SliceEncoder", "SliceSettings", "make_sphere_encoder"]
