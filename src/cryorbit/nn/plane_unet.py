"""A 2D U-Net over three planes that are the coordinate pairs of one space, each block of which lets them see each other.

Plane p holds axes (u, v) = (p, p + 1), arrays [v, u] (`models.triplane.AXES`). The pixel (u, v) of xy and the pixel of the
same indices of yz have nothing to do with one another; what belongs to (u, v) is the column of yz at y = v and the row of
zx at x = u. Their means are what a pixel is shown (roll-out; Wang et al. 2023, Rodin, calls it so).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.nn.unet import GROUP, Attention, silence


def along_missing(planes: Float[Tensor, "b 3 c n n"]) -> tuple[Tensor, Tensor]:
    """What the other two planes say about v and about u of each plane, the mean over the axis that it lacks.

    Returns
    -------
    of_v, of_u
        Each of shape (b, 3, c, n).
    """
    return planes.roll(-1, 1).mean(-2), planes.roll(-2, 1).mean(-1)


class RollOut(nn.Module):
    """Adds what the other two planes say about the row and the column of a pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.row = nn.Conv1d(channels, channels, 3, padding=1)
        self.column = nn.Conv1d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b3 c n n"]) -> Float[Tensor, "b3 c n n"]:
        """Of planes in the batch, three by three."""
        of_v, of_u = (s.flatten(0, 1) for s in along_missing(x.unflatten(0, (-1, 3))))
        return x + self.row(of_v)[..., None] + self.column(of_u)[..., None, :]


class PlaneBlock(nn.Module):
    """x + conv(silu(film(norm(rollout(conv(silu(norm(x)))))))); a block that is new changes nothing."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        groups = max(1, channels // GROUP)
        self.first_norm = nn.GroupNorm(groups, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.mix = RollOut(channels)
        self.second_norm = nn.GroupNorm(groups, channels, affine=False)
        self.film = nn.Linear(embedding, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        silence(self.second)

    def forward(self, x: Float[Tensor, "b3 c n n"], embedded: Float[Tensor, "b3 e"]) -> Tensor:
        """Features of the same shape."""
        scale, shift = self.film(embedded)[:, :, None, None].chunk(2, dim=1)
        h = self.mix(self.first(nn.functional.silu(self.first_norm(x))))
        h = torch.addcmul(shift, self.second_norm(h), 1 + scale)
        return x + self.second(nn.functional.silu(h))


class PlaneUNet(nn.Module):
    """From noisy planes and numbers that are known about them to planes, zero from a new network.

    Planes of any size: what is not a multiple of `multiple` is padded with zeros behind, and cut off again.

    Parameters
    ----------
    features
        Channels of each plane that goes out.
    channels
        Of each level, from the full plane down; each level has half the edge of the one above. At the last one every
        pixel of every plane looks at all others.
    conditions
        Numbers per sample in `forward`'s condition.
    inputs
        Sets of planes that are seen at once, one behind the other along their channels.
    """

    def __init__(self, features: int, channels: tuple[int, ...], *, conditions: int, inputs: int = 1) -> None:
        super().__init__()
        if not channels or min(*channels, features, conditions, inputs) < 1:
            raise BadInput(
                f"PlaneUNet: wanted channels for each level, features and conditions of 1 or more, got {channels}, "
                f"{features}, {conditions}."
            )
        if any(c % GROUP for c in channels if c > GROUP):
            raise BadInput(f"PlaneUNet: channels {channels} are normalised in groups of {GROUP}.")
        self.multiple = 2 ** (len(channels) - 1)
        width = 4 * channels[0]
        self.embed = nn.Sequential(nn.Linear(conditions, width), nn.SiLU(), nn.Linear(width, width))
        self.which = nn.Parameter(torch.zeros(3, width))
        self.stem = nn.Conv2d(inputs * features + 2, channels[0], 3, padding=1)
        *above, lowest = channels
        self.down = nn.ModuleList(PlaneBlock(c, width) for c in above)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(channels))
        self.middle = PlaneBlock(lowest, width)
        self.attention = Attention(lowest)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(channels))
        self.merge = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in above)
        self.up = nn.ModuleList(PlaneBlock(c, width) for c in above)
        self.last_norm = nn.GroupNorm(max(1, channels[0] // GROUP), channels[0])
        self.last = nn.Conv2d(channels[0], features, 3, padding=1)
        silence(self.last)

    def forward(
        self, planes: Float[Tensor, "b 3 d n n"], condition: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b 3 c n n"]:
        """Planes of the same size."""
        n = planes.shape[-1]
        extra = -n % self.multiple
        embedded = nn.functional.silu(self.embed(condition)[:, None] + self.which).flatten(0, 1)
        h = self.stem(nn.functional.pad(with_places(planes).flatten(0, 1), (0, extra) * 2))
        seen = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = block(h, embedded)
            seen.append(h)
            h = shrink(h)
        h = self.middle(h, embedded)
        h = self.attention(h.unflatten(0, (-1, 3)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        for i in reversed(range(len(seen))):
            h = self.up[i](self.merge[i](torch.cat((self.grow[i](h), seen[i]), dim=1)), embedded)
        out = self.last(nn.functional.silu(self.last_norm(h)))
        return out[..., :n, :n].unflatten(0, (-1, 3))


def with_places(planes: Float[Tensor, "b 3 c n n"]) -> Float[Tensor, "b 3 d n n"]:
    """Planes and where their pixels are, u and v from -1 to 1 about index n // 2: molecules lie in the middle."""
    n = planes.shape[-1]
    place = (torch.arange(n).to(planes) - n // 2) / (n / 2)
    v, u = torch.meshgrid(place, place, indexing="ij")
    where = torch.stack((u, v)).expand(*planes.shape[:2], 2, n, n)
    return torch.cat((planes, where), dim=2)
