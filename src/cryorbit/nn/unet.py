"""A 3D U-Net whose every block is told the level of noise and whatever else is known (feature-wise scale and shift)."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput

GROUP = 8


def silence(layer: nn.Module) -> None:
    """Set a layer's weights to zero, so that what it adds starts as nothing."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)


class Block(nn.Module):
    """x + conv(silu(film(norm(conv(silu(norm(x))))))); a block that is new changes nothing."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        groups = max(1, channels // GROUP)
        self.first_norm = nn.GroupNorm(groups, channels)
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second_norm = nn.GroupNorm(groups, channels, affine=False)
        self.film = nn.Linear(embedding, 2 * channels)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        silence(self.second)

    def forward(self, x: Float[Tensor, "b c z y x"], embedded: Float[Tensor, "b e"]) -> Tensor:
        """Features of the same shape."""
        scale, shift = self.film(embedded)[:, :, None, None, None].chunk(2, dim=1)
        h = self.first(nn.functional.silu(self.first_norm(x)))
        h = torch.addcmul(shift, self.second_norm(h), 1 + scale)
        return x + self.second(nn.functional.silu(h))


class Attention(nn.Module):
    """Every voxel of a small grid looks at all others; one head per 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(max(1, channels // GROUP), channels)
        self.heads = max(1, channels // 32)
        self.ask = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        silence(self.out)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Tensor:
        """Features of the same shape."""
        tokens = self.norm(x).flatten(2).mT
        q, k, v = self.ask(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(seen).mT.reshape(x.shape)


class UNet(nn.Module):
    """From a noisy map and numbers that are known about it to a map: halved, halved again, and back with what was seen.

    Boxes of any size: what is not a multiple of `multiple` is padded with zeros behind, and cut off again.

    Parameters
    ----------
    channels
        Of each level, from the full box down; each level has half the box of the one above.
    conditions
        Numbers per sample in `forward`'s condition.
    inputs
        Maps that are seen at once: the noisy one, and what else is known voxel by voxel.
    patch
        1, or 2: pairs of voxels along each axis become channels first, which makes all levels half as large.
    blocks
        Blocks per level, on the way down and again on the way up.
    attention
        Whether voxels of the coarsest level look at one another.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        *,
        conditions: int,
        inputs: int = 1,
        patch: int = 1,
        blocks: int = 1,
        attention: bool = False,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1 or patch not in (1, 2) or min(blocks, conditions, inputs) < 1:
            raise BadInput(
                f"UNet: wanted channels for each level, patch 1 or 2, blocks, conditions and inputs of 1 or more, got "
                f"channels {channels}, patch {patch}, blocks {blocks}, conditions {conditions}, inputs {inputs}."
            )
        if any(c % GROUP for c in channels if c > GROUP):
            raise BadInput(
                f"UNet: channels {channels} are normalised in groups of {GROUP}. Give multiples of it."
            )
        self.patch, self.multiple = patch, patch * 2 ** (len(channels) - 1)
        width = 4 * channels[0]
        self.embed = nn.Sequential(
            nn.Linear(conditions, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.stem = nn.Conv3d(inputs * patch**3, channels[0], 3, padding=1)
        *above, lowest = channels
        self.down = nn.ModuleList(_blocks(c, width, blocks) for c in above)
        self.shrink = nn.ModuleList(nn.Conv3d(a, b, 2, stride=2) for a, b in pairwise(channels))
        self.middle = _blocks(lowest, width, blocks)
        self.attention = Attention(lowest) if attention else nn.Identity()
        self.grow = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in pairwise(channels))
        self.merge = nn.ModuleList(nn.Conv3d(2 * c, c, 1) for c in above)
        self.up = nn.ModuleList(_blocks(c, width, blocks) for c in above)
        self.last_norm = nn.GroupNorm(max(1, channels[0] // GROUP), channels[0])
        self.last = nn.Conv3d(channels[0], patch**3, 3, padding=1)
        silence(self.last)

    def forward(
        self, x: Float[Tensor, "b inputs n n n"], condition: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b 1 n n n"]:
        """A map of the same box; zero from a new network."""
        box = x.shape[-1]
        extra = -box % self.multiple
        embedded = self.embed(condition)
        h = self.stem(space_to_depth(nn.functional.pad(x, (0, extra) * 3), self.patch))
        seen = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            h = _run(level, h, embedded)
            seen.append(h)
            h = shrink(h)
        h = self.attention(_run(self.middle, h, embedded))
        for i in reversed(range(len(seen))):
            h = self.merge[i](torch.cat((self.grow[i](h), seen[i]), dim=1))
            h = _run(self.up[i], h, embedded)
        out = self.last(nn.functional.silu(self.last_norm(h)))
        return depth_to_space(out, self.patch)[..., :box, :box, :box]


def _blocks(channels: int, embedding: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(Block(channels, embedding) for _ in range(count))


def _run(blocks: nn.Module, h: Tensor, embedded: Tensor) -> Tensor:
    for block in blocks.children():
        h = block(h, embedded)
    return h


def space_to_depth(x: Float[Tensor, "b c n n n"], patch: int) -> Float[Tensor, "b d m m m"]:
    """Cubes of `patch` voxels along each axis become channels; nothing is lost.

    >>> space_to_depth(torch.zeros(1, 1, 4, 4, 4), 2).shape
    torch.Size([1, 8, 2, 2, 2])
    """
    if patch == 1:
        return x
    b, c, n = x.shape[:3]
    m = n // patch
    cubes = x.reshape(b, c, m, patch, m, patch, m, patch).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return cubes.reshape(b, c * patch**3, m, m, m)


def depth_to_space(x: Float[Tensor, "b d m m m"], patch: int) -> Float[Tensor, "b c n n n"]:
    """The reverse of `space_to_depth`."""
    if patch == 1:
        return x
    b, d, m = x.shape[:3]
    cubes = x.reshape(b, d // patch**3, patch, patch, patch, m, m, m).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return cubes.reshape(b, d // patch**3, patch * m, patch * m, patch * m)
