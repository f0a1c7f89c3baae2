"""Encoders on the pixel grid: cryoAI's VGG, and its C4 and D4 equivariant forms with one pose or many.

All share the filter bank, the blocks of convolutions and the pooling; an equivariant network of the same width has
the same channels (fields x group order) and so the same operations per image as the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.geometry.groups import PlaneGroup, plane_matrices, pose_matrices
from cryorbit.geometry.rotations import orthogonalise, random_rotations, six_d_to_matrix
from cryorbit.models.plane_trunk import PlaneEncoderSettings, Trunk
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction
from cryorbit.nn.group_conv import GroupConv
from cryorbit.nn.group_linear import EquivariantLinear
from cryorbit.nn.group_norm import FieldBatchNorm, FieldGroupNorm

HIDDEN = (512, 256)
"""Channels of the hidden layers of the heads."""
REGULAR_FIELDS, REGULAR_HIDDEN = 128, 256
"""Fields that the head with many poses reads from, at full width, and its hidden units."""


def make_plane_encoder(name: str, *, box: int, **options: object) -> PoseEncoder:
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


class StandardEncoder(PoseEncoder):
    """cryoAI's encoder (Levy et al. 2022): 6D rotation and shift in pixels from two heads on a VGG trunk.

    With several hypotheses the rotation head gives a rotation and a logit for each; they share the shift.
    """

    def __init__(self, settings: PlaneEncoderSettings) -> None:
        super().__init__()
        self.settings, self.box = settings, settings.box
        self.trunk = Trunk(settings, None)
        n_in, k = self.trunk.fields * self.trunk.size**2, settings.hypotheses
        self.hypotheses = k
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
        k = self.hypotheses
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

    def features(self, images: Float[Tensor, "b h h"]) -> Float[Tensor, "b g c"]:
        """Regular features of the whole image, that both heads read."""
        return F.relu(self.readout(self.trunk(images).unflatten(1, (self.order, -1))))[..., 0, 0]

    def forward(self, images: Float[Tensor, "b h h"]) -> PosePrediction:
        """One hypothesis of each image."""
        self.check_box(images)
        features = self.features(images)
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
        self.norm = own if norm else None
        self.second = EquivariantLinear("regular", wide, "regular", narrow, group=group)
        self.last = EquivariantLinear("regular", narrow, kind, n, group=group)

    def forward(self, features: Tensor) -> Tensor:
        x = F.relu(self.first(features))
        if self.norm is not None:
            x = self.norm.of_elements(x)
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
        self.hypotheses = k = settings.hypotheses
        last = nn.Linear(hidden, 9 * k)
        self.head = nn.Sequential(
            nn.Linear(fields, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last
        )
        _spread(last, k)

    def forward(self, images: Float[Tensor, "b h h"]) -> PosePrediction:
        """8 x K hypotheses of each image."""
        self.check_box(images)
        features = F.relu(self.readout(self.trunk(images).unflatten(1, (8, -1))))[..., 0, 0]
        out = self.head(features).unflatten(-1, (self.hypotheses, 9))
        rotation = orthogonalise(out[..., :3], out[..., 3:6])
        rho = pose_matrices(dtype=out.dtype).to(out.device)[:, None]
        plane = plane_matrices(dtype=out.dtype).to(out.device)
        shift_px = _shift_scale(self.box) * (out[..., 7:] @ plane.mT) - _half_pixel(self.box)
        logits = out[..., 6].flatten(1)
        return PosePrediction(
            (rho @ rotation).flatten(1, 2), logits, shift_px.flatten(1, 2), 1 / logits.shape[1]
        )


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
