"""Scores of maps."""

import math

import pytest
import torch

from cryorbit.analysis.density_scores import score_density
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.physics.atom_density import density_of_atoms
from cryorbit.physics.procedural_protein import procedural_protein

RESIDUE_SPREAD = 0.08
"""Of the integral over a residue, with the amino acids drawn."""


@pytest.mark.parametrize("box", [31, 32])
def test_a_protein_has_its_mass_and_size_and_is_one_piece(box):
    found = score_density(
        density_of_atoms(procedural_protein(100, seed=1), box=box, pixel_size_A=3.0, resolution_A=8.0)
    )
    assert found.residues == pytest.approx(100, rel=RESIDUE_SPREAD)
    assert 0.8 < found.rg_ratio < 1.2
    assert found.largest_piece > 0.99
    assert found.negative < 0.01


def test_two_far_halves_are_two_pieces_and_nothing_has_no_size():
    values = torch.zeros(16, 16, 16)
    values[3:5, 3:5, 3:5] = values[11:13, 11:13, 11:13] = 1.0
    assert score_density(Volume(values, 3.0)).largest_piece == pytest.approx(0.5)
    assert math.isnan(score_density(Volume(-values, 3.0)).rg_A)
    with pytest.raises(BadInput, match="constant"):
        score_density(Volume(torch.zeros(8, 8, 8), 3.0))
