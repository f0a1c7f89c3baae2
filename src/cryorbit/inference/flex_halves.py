"""How well conformations are known: models of moving Gaussians learned from two half sets that share nothing but poses.

The images are put into groups of like conformation by the model of all of them. The images of a group that belong to a half
say where that group lies in the latent space of that half's own model (their median), so no image decides on both sides of a
comparison and the two latent spaces need not be alike. Two maps per group come out, of different images and different
models, whose correlation noise does not raise. Poses, and with them what poses are wrong by, are common to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation, fourier_shell_correlation
from cryorbit.analysis.latent_units import ErrorUnits
from cryorbit.analysis.latents import k_means
from cryorbit.errors import BadInput
from cryorbit.inference.flex_decode import decode_maps
from cryorbit.inference.flex_result import FlexResult

_FEWEST = 20
"""Images of each half in a group: the median of fewer is noisy."""


@dataclass(frozen=True, eq=False)
class HalfAgreement:
    """Conformations as two halves of the images have them.

    Parameters
    ----------
    label
        Group of each image, -1 for those in groups too small to say, shape (n,).
    images
        Images of each group that was compared, shape (k,).
    curves
        FSC of the two maps of each group.
    """

    label: Int[Tensor, "n"]
    images: Int[Tensor, "k"]
    curves: tuple[ShellCorrelation, ...]

    def resolutions_A(self, threshold: float = 0.143) -> Float[Tensor, "k"]:
        """Resolution of each group's conformation."""
        return torch.tensor([curve.resolution_A(threshold) for curve in self.curves])


def compare_half_models(
    whole: FlexResult,
    halves: Sequence[FlexResult],
    half: Int[Tensor, "n"],
    *,
    groups: int = 20,
    seed: int = 0,
) -> HalfAgreement:
    """Correlate the maps of each group of images as two models have them that were learned from a half each.

    Parameters
    ----------
    whole
        Of all images.
    halves
        Of the images of half 0 and of half 1, in the order in which they stand in `whole`.
    half
        0 or 1 per image.
    groups
        Conformations to compare, by k-means of the latents of `whole`; fewer where there are not enough images.

    Raises
    ------
    BadInput
        If the halves are not those of `whole`, or too small for one group.
    """
    n = len(whole.z)
    counts = [int((half == h).sum()) for h in (0, 1)]
    if len(half) != n or [len(r.z) for r in halves] != counts:
        raise BadInput(
            f"compare_half_models: {n} images, halves of {counts}, but models of {[len(r.z) for r in halves]}. Give the "
            "models of these halves."
        )
    points = ErrorUnits.of(whole.precision).coordinates(whole.z)
    label = k_means(points, max(1, min(groups, min(counts) // _FEWEST)), seed=seed).label
    known, images, curves = torch.full((n,), -1), [], []
    for group in range(int(label.max()) + 1):
        members = [label[half == h] == group for h in (0, 1)]
        if min(int(m.sum()) for m in members) < _FEWEST:
            continue
        first, second = (
            next(decode_maps(r.model, r.z[m].median(0).values[None], box=r.box, pixel_size_A=r.pixel_size_A))
            for r, m in zip(halves, members, strict=True)
        )
        known[label == group] = len(curves)
        images.append(int((label == group).sum()))
        curves.append(fourier_shell_correlation(first, second))
    if not curves:
        raise BadInput(
            f"compare_half_models: no group has {_FEWEST} images of each half ({counts[0]} and {counts[1]} images). Ask for "
            "fewer groups."
        )
    return HalfAgreement(known, torch.tensor(images), tuple(curves))
