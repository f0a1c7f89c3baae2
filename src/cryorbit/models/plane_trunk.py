"""What encoders on the pixel grid share: their settings, and the convolutions from image to a map of side 2 or 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.geometry.groups import PlaneGroup
from cryorbit.models.pose_encoder import EncoderName
from cryorbit.nn.filter_bank import N_CHANNELS, FilterBank
from cryorbit.nn.group_conv import SharedKernel, avg_pool, convolve, max_pool, pooled_size
from cryorbit.nn.group_norm import FieldBatchNorm, FieldGroupNorm

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (256, 256), (256, 256))
"""Channels of the convolutions of each block at full width, as cryoAI's for boxes to 128 px."""
POOLS = (max_pool, max_pool, max_pool, avg_pool, avg_pool)
LAST_SIZE = 3
"""Largest side of the map that the heads read."""


@dataclass(frozen=True, kw_only=True)
class PlaneEncoderSettings:
    """How to make one of these encoders."""

    name: EncoderName
    """"standard", "c4", "d4" or "d4-regular"."""
    box: int
    """Side of the images in pixels, 8 or more."""
    width: float = 1.0
    """Channels relative to the network of full size; their numbers are multiples of 8."""
    hypotheses: int = 1
    """Poses per image ("standard"), per image and element ("d4-regular")."""
    norm: Literal["batch", "group"] = "batch"
    """Statistics over the batch (as published), or within each image: the same in training and use."""
    frozen_shift_head: bool = False
    """Leave the shift head as drawn, as published cryoAI does; "standard" only."""
    precision: Literal["full", "bfloat16"] = "full"
    """Of the convolutions: that of the weights, or bfloat16 with float32 weights."""

    def __post_init__(self) -> None:
        if self.name not in ("standard", "c4", "d4", "d4-regular"):
            raise BadInput(f"Encoder {self.name!r} does not work on the pixel grid.")
        if self.box < 8 or self.width <= 0 or self.hypotheses < 1:
            raise BadInput(
                f"Encoder {self.name!r}: wanted box >= 8, width > 0 and hypotheses >= 1, got box {self.box}, width "
                f"{self.width} and {self.hypotheses} hypotheses."
            )
        if self.name in ("c4", "d4") and self.hypotheses > 1:
            raise BadInput(
                f"Encoder {self.name!r} gives one pose per image, but {self.hypotheses} hypotheses were asked for. Use "
                "'d4-regular' or 'standard'."
            )
        if self.frozen_shift_head and self.name != "standard":
            raise BadInput(f"frozen_shift_head is a defect of 'standard'; encoder {self.name!r} has it not.")

    def channels(self, full: int) -> int:
        """`full` scaled by the width, to a multiple of 8."""
        return max(8, 8 * round(full * self.width / 8))


class Trunk(nn.Module):
    """Images (b, h, h) to a map of side 2 or 3, (b, channels, m, m): regular fields, group outermost, if `group`.

    Blocks are followed by pooling while the map has side 4 or more, so that a box of 32 px has four poolings, 64
    five and 128 six.
    """

    def __init__(self, settings: PlaneEncoderSettings, group: PlaneGroup | None) -> None:
        super().__init__()
        self.bank = FilterBank(settings.box)
        self.precision = settings.precision
        order = {None: 1, "C4": 4, "D4": 8}[group]
        layers: list[nn.Module] = []
        previous, size = N_CHANNELS, settings.box
        for block, pool in zip(BLOCKS, POOLS, strict=True):
            for full in block:
                fields = settings.channels(full) // order
                layers.append(_layer(previous, fields, group, settings.norm, first=not layers))
                previous = fields
            if size > LAST_SIZE:
                layers.append(_Pool(pool))
                size = pooled_size(size)
        while size > LAST_SIZE:
            layers.append(_Pool(max_pool))
            size = pooled_size(size)
        self.layers = nn.ModuleList(layers)
        self.fields, self.size = previous, size

    def forward(self, images: Float[Tensor, "b h h"]) -> Float[Tensor, "b c m m"]:
        """Features in the dtype of the images."""
        x = self.bank(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            for layer in self.layers:
                x = layer(x)
        return x.to(images.dtype)


class _Pool(nn.Module):
    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


class _PlainLayer(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv.weight.data = self.conv.weight.data.contiguous(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels // 8, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class _GroupLayer(nn.Module):
    """The same on regular fields as channels, (b, group x fields, h, w); the norm makes a bias superfluous."""

    def __init__(self, before: int, fields: int, group: PlaneGroup, norm: str, *, lift: bool) -> None:
        super().__init__()
        self.kernel = SharedKernel(before, fields, 3, group=group, lift=lift)
        self.norm = FieldBatchNorm(fields) if norm == "batch" else FieldGroupNorm(fields)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm.of_channels(convolve(x, self.kernel, None, padding=1))
        return F.relu(x, inplace=x._base is None)  # in place on a view costs copies


def _layer(before: int, after: int, group: PlaneGroup | None, norm: str, *, first: bool) -> nn.Module:
    if group is None:
        return _PlainLayer(before, after, norm)
    return _GroupLayer(before, after, group, norm, lift=first)
