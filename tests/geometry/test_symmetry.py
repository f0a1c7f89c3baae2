"""Laws of the point groups: closed, of the right order, in RELION's settings; the unit is one."""

import math

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import frobenius_squared, geodesic_angle, matrix_to_rotvec
from cryorbit.geometry.so3_grid import healpix_directions
from cryorbit.geometry.symmetry import (
    canonical_name,
    in_asymmetric_unit,
    point_group,
    reduce_to_asymmetric_unit,
)
from laws import ROUND_OFF, rotations

F64 = torch.float64
EXACT = ROUND_OFF[F64]
ORDERS = {
    "C1": 1, "C2": 2, "C3": 3, "C7": 7, "D1": 2, "D2": 4, "D5": 10,
    "T": 12, "O": 24, "I": 60, "I1": 60, "I2": 60, "I3": 60, "I4": 60,
}  # fmt: skip
SYMMETRISED = 1e-3  # float32 files; a plain flip, one voxel off, leaves 0.4
PRINTED = 1e-6  # axes as published, six to ten decimals
AXES = [
    ("C5", 5, (0, 0, 1)),
    ("D3", 3, (0, 0, 1)),
    ("D3", 2, (1, 0, 0)),
    ("D4", 4, (0, 0, 1)),
    ("D4", 2, (1, 0, 0)),
    ("T", 3, (0, 0, 1)),
    ("T", 2, (0, 0.816496, 0.577350)),
    ("O", 4, (0, 0, 1)),
    ("O", 3, (0.5773502, 0.5773502, 0.5773502)),
    ("O", 4, (1, 0, 0)),
    ("I2", 2, (0, 0, 1)),
    ("I2", 2, (1, 0, 0)),
    ("I2", 2, (0, 1, 0)),
    ("I2", 5, (0.525731114, 0, 0.850650807)),
    ("I2", 3, (0, 0.356822076, 0.934172364)),
    ("I1", 2, (1, 0, 0)),
    ("I1", 2, (0, 0, 1)),
    ("I1", 5, (0.85065080702670, 0, -0.5257311142635)),
    ("I1", 3, (0.9341723640, 0.3568220765, 0)),
    ("I3", 2, (-0.5257311143, 0, 0.8506508070)),
    ("I3", 5, (0, 0, 1)),
    ("I3", 3, (-0.4911234778630044, 0.3568220764705179, 0.7946544753759428)),
    ("I4", 2, (0.5257311143, 0, 0.8506508070)),
    ("I4", 5, (0.8944271932547096, 0, 0.4472135909903704)),
    ("I4", 5, (0, 0, 1)),
    ("I4", 3, (0.4911234778630044, 0.3568220764705179, 0.7946544753759428)),
]


def _to_element(matrix, group):
    """Squared distance to the nearest element."""
    return frobenius_squared(matrix[..., None, :, :], group).amin(-1)


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_group_axioms(name, order):
    """The right number of different rotations, the identity first, closed under products and inverses."""
    g = point_group(name)
    assert g.shape == (order, 3, 3)
    torch.testing.assert_close(g[0], torch.eye(3, dtype=F64))
    torch.testing.assert_close(g.mT @ g, torch.eye(3, dtype=F64).expand_as(g), rtol=0, atol=EXACT)
    assert (torch.linalg.det(g) > 0).all()
    assert _to_element(g[:, None] @ g, g).max() < EXACT
    assert _to_element(g.mT, g).max() < EXACT
    apart = frobenius_squared(g[:, None], g) + 8 * torch.eye(order)
    assert order == 1 or apart.min() > 8 * math.sin(math.pi / max(order, 10)) ** 2 / 2


@pytest.mark.parametrize(("name", "fold", "axis"), AXES)
def test_axes_are_relions(name, fold, axis):
    """The group holds the fold-fold turn about RELION's axis, and no other turn about it."""
    g = point_group(name)
    rotvec = matrix_to_rotvec(g)
    direction = torch.tensor(axis, dtype=F64)
    along = (rotvec @ direction).abs()
    parallel = (along - rotvec.norm(dim=-1)).abs() < PRINTED * 10
    angles = along[parallel & (along > 1e-3)]
    assert len(angles) == fold - 1
    assert abs(angles.min() - 2 * math.pi / fold) < PRINTED * 10


@pytest.mark.parametrize(
    ("name", "census"),
    [
        ("T", {2: 3, 3: 8}),
        ("O", {2: 9, 3: 8, 4: 6}),
        ("I2", {2: 15, 3: 20, 5: 24}),
        ("I3", {2: 15, 3: 20, 5: 24}),
    ],
)
def test_census_of_turns(name, census):
    """Elements by their order: the tetrahedral, octahedral and icosahedral groups."""
    angle = geodesic_angle(torch.eye(3, dtype=F64), point_group(name))
    for fold, count in census.items():
        hits = sum(
            int((angle - 2 * math.pi * k / fold).abs().lt(1e-9).sum()) for k in range(1, fold // 2 + 1)
        )
        if fold == 4:
            hits -= int((angle - math.pi).abs().lt(1e-9).sum())
        assert hits == count


@pytest.mark.parametrize("name", ["", "C0", "K3", "C-1", "I5", "C1.5", "Oh"])
def test_unknown_groups_are_refused(name):
    """A name that is none says what the names are."""
    with pytest.raises(BadInput, match="Give C1, C2"):
        point_group(name)


def test_names_are_forgiving():
    """Case and blanks do not matter; I is I2."""
    assert canonical_name(" c4 ") == "C4"
    assert canonical_name("i") == "I2"
    assert torch.equal(point_group("i"), point_group("I2"))


def test_groups_are_handed_out_as_copies():
    """Changing what was returned does not change the next answer."""
    point_group("T").zero_()
    assert point_group("T")[0, 0, 0] == 1


@pytest.mark.parametrize("name", list(ORDERS))
def test_asymmetric_unit_covers_the_sphere_once(name):
    """Of the equivalents of any direction exactly one lies in the unit, on axes and borders too."""
    g = point_group(name)
    generator = torch.Generator().manual_seed(0)
    general = torch.nn.functional.normalize(torch.randn(2000, 3, generator=generator, dtype=F64), dim=-1)
    rotvec = matrix_to_rotvec(g[1:])
    axes = torch.nn.functional.normalize(rotvec, dim=-1)
    for directions in (general, healpix_directions(2), axes, -axes):
        orbit = torch.einsum("gji,nj->ngi", g, directions)
        inside = in_asymmetric_unit(orbit, g)
        # Directions on an axis have fewer equivalents: count places, not elements.
        same = (orbit[:, :, None] - orbit[:, None]).norm(dim=-1) < 1e-6
        places = (inside / same.sum(-1)).sum(-1)
        torch.testing.assert_close(places, torch.ones_like(places), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["C3", "D2", "T", "O", "I"])
def test_asymmetric_unit_is_one_part_in_the_order(name):
    """Its share of HEALPix pixels is 1 / |G|."""
    g = point_group(name)
    share = in_asymmetric_unit(healpix_directions(5), g).double().mean() * len(g)
    assert abs(share - 1) < 0.05


@given(rotations(), st.sampled_from(sorted(ORDERS)))
def test_reduction_stays_equivalent(r, name):
    """R g looks from inside the unit, g is in the group, and equivalent poses reduce to the same one."""
    g = point_group(name)
    reduced = reduce_to_asymmetric_unit(r, g)
    assert in_asymmetric_unit(reduced[2], g)
    assert _to_element(r.mT @ reduced, g) < EXACT
    others = reduce_to_asymmetric_unit(r @ g, g)
    same_view = (others[:, 2] - reduced[2]).norm(dim=-1)
    assert same_view.max() < 1e-6


def test_reduction_keeps_dtype():
    """Float32 poses stay float32."""
    r = torch.eye(3)[None]
    assert reduce_to_asymmetric_unit(r, point_group("O")).dtype == torch.float32


@pytest.mark.data
def test_relions_own_map_has_the_symmetry(data_dir):
    """The tutorial map of beta-galactosidase, symmetrised by RELION, is D2 about index N // 2."""
    path = data_dir / "maps" / "betagal_relion_tutorial.mrc.gz"
    with mrcfile.open(path, permissive=True) as file:
        density = torch.from_numpy(np.array(file.data, dtype=np.float64))
    n = len(density)
    axis = torch.arange(n, dtype=F64) - n // 2
    xyz = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], -1)
    for element in point_group("D2"):
        x, y, z = ((xyz @ element.mT).round().long() + n // 2).remainder(n).unbind(-1)
        left = (density[z, y, x] - density)[1:, 1:, 1:]  # index 0 of an even box has no partner
        assert left.norm() < SYMMETRISED * density.norm()
