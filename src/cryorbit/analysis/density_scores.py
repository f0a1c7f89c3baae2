"""Whether a map looks like a protein by itself: its mass, its size, whether it is one piece."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import ndimage

from cryorbit.analysis.masks import density_level
from cryorbit.data import Volume
from cryorbit.data.protein_chain import rg_law_A
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import pixel_grid

RESIDUE_V_A3 = 889.0
"""Integral of the potential over one residue, heavy atoms, volts times cubic angstrom: mean of procedural proteins of 50 to
240 residues, which range over 857 to 943 with the amino acids drawn."""


@dataclass(frozen=True)
class DensityScores:
    """What one map in volts looks like.

    Parameters
    ----------
    residues
        Its integral over that of a residue.
    rg_A, rg_ratio
        Radius of gyration of the density well above the solvent's, and over that of a globular protein of so many residues.
    largest_piece
        Share of the volume above Otsu's level that hangs together with the largest piece; 1 for one molecule.
    negative
        Share of the sum of squares that is in negative voxels; ringing of the low pass gives a little.
    """

    residues: float
    rg_A: float
    rg_ratio: float
    largest_piece: float
    negative: float


def score_density(volume: Volume) -> DensityScores:
    """All scores of one map; sizes are NaN where its density sums to nothing.

    Raises
    ------
    BadInput
        If the map is constant.
    """
    values = volume.values.double().cpu()
    total = float(values.sum())
    power = float(values.square().sum())
    if float(values.std()) == 0:
        raise BadInput("score_density: the map is constant. Give one with density in it.")
    residues = total * volume.pixel_size_A**3 / RESIDUE_V_A3
    rg = radius_of_gyration_A(volume) if total > 0 else math.nan
    solid = values > density_level(values)
    labels, count = ndimage.label(solid.numpy())  # pyright: ignore[reportGeneralTypeIssues]
    sizes = torch.bincount(torch.from_numpy(labels).flatten().long(), minlength=count + 1)[1:]
    return DensityScores(
        residues=residues,
        rg_A=rg,
        rg_ratio=rg / rg_law_A(max(1, round(residues))),
        largest_piece=float(sizes.max() / sizes.sum()) if count else 0.0,
        negative=float(values.clamp_max(0).square().sum()) / power,
    )


def radius_of_gyration_A(volume: Volume) -> float:
    """Root mean square distance of the density above half of Otsu's level from its centre, angstrom."""
    weight = volume.values.double().cpu()
    weight = torch.where(weight > 0.5 * density_level(weight), weight, 0.0).clamp_min(0)
    place = pixel_grid(volume.box, ndim=3).double() * volume.pixel_size_A
    total = weight.sum().clamp_min(1e-300)
    centre = (weight[..., None] * place).sum((0, 1, 2)) / total
    return float(((weight * (place - centre).square().sum(-1)).sum() / total).sqrt())
