"""Encoders on the pixel grid: cryoAI's VGG, and its C4 and D4 equivariant forms with one pose or many.

All share the filter bank, the blocks of convolutions and the pooling; an equivariant network of the same width has
the same channels (fields x group order) and so the same operations per image as the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.geometry.groups import PlaneGroup, plane_matrices, pose_matrices
from cryorbit.geometry.rotations import orthogonalise, random_rotations, six_d_to_matrix
from cryorbit.models.pose_encoder import EncoderName, PoseEncoder, PosePrediction
from cryorbit.nn.filter_bank import N_CHANNELS, FilterBank
from cryorbit.nn.group_conv import GroupConv, SharedKernel, avg_pool, convolve, max_pool, pooled_size
from cryorbit.nn.group_linear import EquivariantLinear
from cryorbit.nn.group_norm import FieldBatchNorm, FieldGroupNorm

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (256, 256), (256, 256))
"""Channels of the convolutions of each block at full width, as cryoAI's for boxes to 128 px."""
POOLS = (max_pool, max_pool, max_pool, avg_pool, avg_pool)
LAST_SIZE = 3
"""Largest side of the map that the heads read."""
HIDDEN = (512, 256)
"""Channels of the hidden layers of the heads."""
REGULAR_FIELDS, REGULAR_HIDDEN = 128, 256
"""Fields that the head with many poses reads from, at full width, and its hidden units."""


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


def make_plane_encoder(name: EncoderName, *, box: int, **options: object) -> PoseEncoder:
    """The encoder of that name; `options` are fields of `PlaneEncoderSettings`."""
    known = PlaneEncoderSettings.__dataclass_fields__
    if unknown := sorted(set(options) - set(known)):
        raise BadInput(f"Encoder {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    settings = PlaneEncoderSettings(name=name, box=box, **options)  # pyright: ignore[reportArgumentType]
    kinds: dict[str, Callable[[PlaneEncoderSettings], PoseEncoder]] = {
        "standard": StandardEncoder,
        "c4": VectorEncoder,
        "d4": VectorEncoder,
        "d4-regular": RegularEncoder,
    }
    return kinds[name](settings)


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
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1).to(memory_format=torch.channels_last)
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


class StandardEncoder(PoseEncoder):
    """cryoAI's encoder (Levy et al. 2022): 6D rotation and shift in pixels from two heads on a VGG trunk.

    With several hypotheses the rotation head gives a rotation and a logit for each; they share the shift.
    """

    def __init__(self, settings: PlaneEncoderSettings) -> None:
        super().__init__()
        self.settings, self.box = settings, settings.box
        self.trunk = Trunk(settings, None)
        n_in, k = self.trunk.fields * self.trunk.size**2, settings.hypotheses
        wide, narrow = (settings.channels(n) for n in HIDDEN)
        norm = nn.BatchNorm1d(wide) if settings.norm == "batch" else nn.LayerNorm(wide)
        self.rotation_head = nn.Sequential(
            nn.Linear(n_in, wide),
            nn.ReLU(),
            norm,
            nn.Linear(wide, narrow),
            nn.ReLU(),
            nn.Linear(narrow, 6 * k if k == 1 else 7 * k),
        )
        self.shift_head = nn.Sequential(
            nn.Linear(n_in, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(), nn.Linear(narrow, 2)
        )
        if k > 1:
            _spread(self.rotation_head[-1], k)
        self.shift_head.requires_grad_(not settings.frozen_shift_head)

    def forward(self, images: Float[Tensor, "b h h"]) -> PosePrediction:
        """Hypotheses of each image."""
        self.check_box(images)
        k = self.settings.hypotheses
        features = self.trunk(images).flatten(1)
        out = self.rotation_head(features).unflatten(1, (k, -1))
        rotation = six_d_to_matrix(out[..., :6])
        logits = out[..., 6] if k > 1 else torch.zeros_like(out[..., 0])
        shift_px = _shift_scale(self.box) * self.shift_head(features)
        return PosePrediction(rotation, logits, shift_px[:, None].expand(-1, k, -1), 1 / k)


class VectorEncoder(PoseEncoder):
    """One pose, equivariant under C4 or D4: two vectors that move as columns of the rotation, and one in the plane.

    Cesa et al.'s construction: V1, V2 and V1 x V2 to the nearest rotation; in closed form here. The shift's vector
    starts at the centre of the pixels, half a pixel before index box // 2 for an even box.
    """

    def __init__(self, settings: PlaneEncoderSettings) -> None:
        super().__init__()
        self.settings, self.box = settings, settings.box
        self.group: PlaneGroup = "C4" if settings.name == "c4" else "D4"
        self.trunk = Trunk(settings, self.group)
        order = 4 if self.group == "C4" else 8
        self.order = order
        self.readout = GroupConv(
            self.trunk.fields, self.trunk.fields, self.trunk.size, group=self.group, padding=0
        )
        self.rotation_head = _VectorHead(self.trunk.fields, settings, self.group, "pose", 2, norm=True)
        self.shift_head = _VectorHead(self.trunk.fields, settings, self.group, "plane", 1, norm=False)

    def forward(self, images: Float[Tensor, "b h h"]) -> PosePrediction:
        """One hypothesis of each image."""
        self.check_box(images)
        features = F.relu(self.readout(self.trunk(images).unflatten(1, (self.order, -1))))[..., 0, 0]
        first, second = self.rotation_head(features).unbind(-1)
        rotation = orthogonalise(first, second)
        shift_px = _shift_scale(self.box) * self.shift_head(features)[..., 0] - _half_pixel(self.box)
        return PosePrediction(rotation[:, None], first.new_zeros(len(first), 1), shift_px[:, None], 1.0)


class _VectorHead(nn.Module):
    """Regular fields through two hidden layers of regular fields to vectors of one kind."""

    def __init__(
        self,
        fields: int,
        settings: PlaneEncoderSettings,
        group: PlaneGroup,
        kind: Literal["plane", "pose"],
        n: int,
        *,
        norm: bool,
    ) -> None:
        super().__init__()
        order = 4 if group == "C4" else 8
        wide, narrow = (settings.channels(c) // order for c in HIDDEN)
        self.first = EquivariantLinear("regular", fields, "regular", wide, group=group)
        own = FieldBatchNorm(wide) if settings.norm == "batch" else FieldGroupNorm(wide)
        self.norm = own if norm else nn.Identity()
        self.second = EquivariantLinear("regular", wide, "regular", narrow, group=group)
        self.last = EquivariantLinear("regular", narrow, kind, n, group=group)

    def forward(self, features: Tensor) -> Tensor:
        x = F.relu(self.first(features))
        x = self.norm(x[..., None, None])[..., 0, 0]
        return self.last(F.relu(self.second(x)))


class RegularEncoder(PoseEncoder):
    """8 x K weighted hypotheses, equivariant under D4 as a distribution: hypothesis (h, k) is at index h K + k.

    One unconstrained network reads every element's features f(h) and gives rotations Orth(W_k f(h)), shifts and
    logits; element h moves rotation and shift as it moves a pose. Moving the image by g carries f(h) to f(g h), and so
    hypothesis (h, k) to (g h, k) with pose g R and the same logit, whatever W is.
    """

    def __init__(self, settings: PlaneEncoderSettings) -> None:
        super().__init__()
        self.settings, self.box = settings, settings.box
        self.trunk = Trunk(settings, "D4")
        fields = max(32, settings.channels(REGULAR_FIELDS))
        hidden = max(64, settings.channels(REGULAR_HIDDEN))
        self.readout = GroupConv(self.trunk.fields, fields, self.trunk.size, group="D4", padding=0)
        k = settings.hypotheses
        last = nn.Linear(hidden, 9 * k)
        self.head = nn.Sequential(
            nn.Linear(fields, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last
        )
        _spread(last, k)

    def forward(self, images: Float[Tensor, "b h h"]) -> PosePrediction:
        """8 x K hypotheses of each image."""
        self.check_box(images)
        features = F.relu(self.readout(self.trunk(images).unflatten(1, (8, -1))))[..., 0, 0]
        out = self.head(features).unflatten(-1, (self.settings.hypotheses, 9))
        rotation = orthogonalise(out[..., :3], out[..., 3:6])
        rho = pose_matrices(dtype=out.dtype).to(out.device)[:, None]
        plane = plane_matrices(dtype=out.dtype).to(out.device)
        shift_px = _shift_scale(self.box) * (out[..., 7:] @ plane.mT) - _half_pixel(self.box)
        logits = out[..., 6].flatten(1)
        return PosePrediction((rho @ rotation).flatten(1, 2), logits, shift_px.flatten(1, 2), 1 / logits.shape[1])


def _spread(last: nn.Module, k: int) -> None:
    """Start the k hypotheses at different rotations: columns of random ones as the bias of the first 6 of each."""
    assert isinstance(last, nn.Linear)
    start = random_rotations(k, generator=torch.default_generator)
    with torch.no_grad():
        bias = last.bias.view(k, -1)
        bias[:, :6] = torch.cat([start[..., 0], start[..., 1]], -1)
        bias[:, 6:] = 0


def _shift_scale(box: int) -> float:
    """Heads give the shift in units of a box of 32, so that its scale does not change with the box."""
    return box / 32


def _half_pixel(box: int) -> float:
    return 0.5 if box % 2 == 0 else 0.0
