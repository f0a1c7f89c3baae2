"""From a map to its tri-planes and back: slices along the axis that a plane lacks are the channels of an image.

An encoder, and not planes of their own for each training map (an auto-decoder): those would be fitted anew for every map,
where one pass through this serves maps never seen, and training has no state per structure that a resumed run would need.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.models.triplane import TriplaneDecoder
from cryorbit.nn.plane_unet import PlaneBlock


def slices_behind(maps: Float[Tensor, "b n n n"]) -> Tensor:
    """Three views of maps [z, y, x]: [z, (y, x)], [x, (z, y)] and [y, (x, z)], as planes lie; shape (b, 3, n, n, n)."""
    return torch.stack((maps, maps.permute(0, 3, 1, 2), maps.permute(0, 2, 3, 1)), dim=1)


class TriplaneEncoder(nn.Module):
    """Planes of maps of one box; the same weights for all three, so cyclic change of axes changes the planes likewise.

    Parameters
    ----------
    box
        Edge of the maps, and of the planes.
    features
        Channels per plane.
    hidden
        Channels within.
    """

    def __init__(self, box: int, features: int, hidden: int, *, blocks: int = 2) -> None:
        super().__init__()
        if min(box, features, hidden, blocks) < 1:
            raise BadInput("TriplaneEncoder: box, features, hidden and blocks have to be 1 or more.")
        self.stem = nn.Conv2d(box, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(PlaneBlock(hidden, 1) for _ in range(blocks))
        self.last = nn.Conv2d(hidden, features, 3, padding=1)

    def forward(self, maps: Float[Tensor, "b n n n"]) -> Float[Tensor, "b 3 c n n"]:
        """Planes of maps in the decoder's unit."""
        h = self.stem(slices_behind(maps).flatten(0, 1))
        nothing = h.new_zeros(len(h), 1)
        for block in self.blocks:
            h = block(h, nothing)
        return self.last(h).unflatten(0, (-1, 3))


class TriplaneCodec(nn.Module):
    """Encoder and decoder, trained together."""

    def __init__(self, box: int, features: int, hidden: int) -> None:
        super().__init__()
        self.encoder = TriplaneEncoder(box, features, hidden)
        self.decoder = TriplaneDecoder(features, hidden)

    def forward(self, maps: Float[Tensor, "b n n n"]) -> Float[Tensor, "b n n n"]:
        """What is left of maps on their way through the planes."""
        return self.decoder.at_voxels(self.encoder(maps))
