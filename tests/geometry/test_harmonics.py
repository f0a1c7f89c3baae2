"""Laws of the harmonics: orthonormal, unitary, a homomorphism, and equal to what others compute."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from cryorbit.errors import BadInput
from cryorbit.geometry import harmonics as h
from cryorbit.geometry.conventions import in_plane_rotation
from cryorbit.geometry.rotations import euler_to_matrix, random_rotations
from laws import ROUND_OFF, rotations

L_MAX = 24
TOLERANCE = ROUND_OFF[torch.float64]


def _close(a, b, atol=TOLERANCE):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def _directions(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return torch.cat(
        [v / v.norm(dim=1, keepdim=True), torch.eye(3, dtype=torch.float64), -torch.eye(3).double()]
    )


@pytest.mark.parametrize("beta", [1e-12, 1e-9, 1e-6, 1e-3, math.pi - 1e-6, math.pi - 1e-10])
def test_angles_near_a_pole_keep_the_rotation(beta):
    """Alpha and gamma lose digits there one by one, together they must not."""
    true = torch.tensor([1.1, beta, -2.3], dtype=torch.float64)
    rotation = euler_to_matrix(true.rad2deg())
    alpha, found, gamma = h.zyz_angles(rotation)
    again = euler_to_matrix(torch.stack((alpha, found, gamma)).rad2deg())
    _close(again, rotation)


@given(rotations(), rotations())
def test_wigner_matrices_are_a_unitary_representation(a, b):
    """D(R1 R2) = D(R1) D(R2) and D D^H = 1, up to degree 24, near the poles as well."""
    left, right, both = (h.wigner_matrices(L_MAX, r) for r in (a, b, a @ b))
    for degree in range(L_MAX + 1):
        _close(
            left[degree] @ right[degree], both[degree], atol=1e-10
        )  # angles near a pole carry half the digits
        _close(left[degree] @ left[degree].mH, torch.eye(2 * degree + 1, dtype=torch.complex128), atol=1e-11)


def test_generic_rotations_compose_to_round_off():
    """D(R1 R2) = D(R1) D(R2) to round-off away from the poles, degree 24, complex and real."""
    a, b = random_rotations(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64).chunk(2)
    for make in (h.wigner_matrices, h.real_wigner_matrices):
        _close(make(L_MAX, a)[-1] @ make(L_MAX, b)[-1], make(L_MAX, a @ b)[-1], atol=1e-11)


@given(st.floats(0.0, math.pi))
def test_wigner_d_has_its_symmetries(beta):
    """d_mn = (-1)^(m - n) d_nm = d_-n,-m, and d(-beta) is the transpose."""
    small = h.wigner_d(L_MAX, torch.tensor([beta, -beta], dtype=torch.float64))
    for degree in (1, 5, L_MAX):
        d, back = small[degree]
        m = torch.arange(-degree, degree + 1)
        sign = (1 - 2 * ((m[:, None] - m).abs() % 2)).double()
        _close(d, sign * d.mT)
        _close(d, d.mT.flip(0, 1))
        _close(back, d.mT)


def test_spherical_harmonics_agree_with_scipy():
    """Y_lm equals scipy's, Condon-Shortley sign included, up to degree 24."""
    v = _directions(50)
    ours = h.spherical_harmonics(L_MAX, v)
    theta, phi = torch.arccos(v[:, 2]).numpy(), torch.atan2(v[:, 1], v[:, 0]).numpy()
    at = 0
    for degree in range(L_MAX + 1):
        for m in range(-degree, degree + 1):
            theirs = torch.from_numpy(special.sph_harm_y(degree, m, theta, phi))
            _close(ours[:, at], theirs, atol=1e-11)
            at += 1


def test_wigner_d_agrees_with_scipy_by_way_of_harmonics():
    """Y(R^T x) = sum_m' D_m'm(R) Y_m'(x): a rotation turns functions forwards."""
    v = _directions(20)
    rotation = random_rotations(3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for real in (False, True):
        harmonics = h.real_spherical_harmonics if real else h.spherical_harmonics
        matrices = (h.real_wigner_matrices if real else h.wigner_matrices)(L_MAX, rotation)
        for i, r in enumerate(rotation):
            moved, still = harmonics(L_MAX, v @ r), harmonics(L_MAX, v)
            for degree in (1, 2, 7, L_MAX):
                part = slice(degree**2, (degree + 1) ** 2)
                _close(moved[:, part], still[:, part] @ matrices[degree][i], atol=1e-11)


def test_real_harmonics_of_degree_one_are_coordinates():
    """Degree 1 is sqrt(3 / 4 pi) (y, z, x), and its matrix is the rotation on (y, z, x)."""
    v = _directions(5)
    _close(h.real_spherical_harmonics(1, v)[:, 1:], math.sqrt(3 / (4 * math.pi)) * v[:, [1, 2, 0]])
    r = random_rotations(1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    order = torch.tensor([1, 2, 0])
    _close(h.real_wigner_matrices(1, r)[1], r[:, order[:, None], order])


def test_wigner_matrices_agree_with_e3nn():
    """Real D^l equals e3nn's, whose polar axis is y: theirs is ours with (x, y, z) renamed (y, z, x)."""
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed; it is only an oracle")
    r = random_rotations(4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    order = torch.tensor([1, 2, 0])
    theirs = o3.matrix_to_angles(r[:, order[:, None], order])
    v = _directions(9)
    for degree in (1, 2, 5, 8):
        _close(h.real_wigner_matrices(degree, r)[degree], o3.wigner_D(degree, *theirs).double(), atol=1e-5)
        y = o3.spherical_harmonics(degree, v[:, order], normalize=False, normalization="integral")
        _close(h.real_spherical_harmonics(degree, v)[:, degree**2 :], y, atol=1e-6)


@pytest.mark.parametrize("resolution", [None, 9])
def test_sphere_grid_analyses_what_it_synthesises(resolution):
    """Coefficients -> values -> coefficients is the identity, and the weights sum to 4 pi."""
    grid = h.SphereGrid.of_degree(6, resolution=resolution)
    _close(grid.to_grid() @ grid.from_grid(), torch.eye(h.n_sphere(6), dtype=torch.float64))
    _close(grid.weight.sum(), torch.tensor(4 * math.pi, dtype=torch.float64))


@pytest.mark.parametrize("resolution", [None, 6])
def test_rotation_grid_analyses_what_it_synthesises(resolution):
    """Coefficients -> values -> coefficients is the identity on the rotations, and the weights sum to 1."""
    grid = h.RotationGrid.of_degree(4, resolution=resolution)
    _close(grid.to_grid() @ grid.from_grid(), torch.eye(h.n_rotations(4), dtype=torch.float64))
    _close(grid.weight.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_rotating_a_function_on_rotations_multiplies_its_blocks():
    """f(g^T R) has the blocks D(g) F: a left turn mixes rows only."""
    generator = torch.Generator().manual_seed(5)
    g, r = random_rotations(2, generator=generator, dtype=torch.float64)
    f = torch.randn(h.n_rotations(5), generator=generator, dtype=torch.float64)
    turned = torch.cat(
        [
            (d @ f[part].view(2 * i + 1, -1)).flatten()
            for i, (d, part) in enumerate(
                zip(h.real_wigner_matrices(5, g), h.rotation_blocks(5), strict=True)
            )
        ]
    )
    _close(h.rotation_harmonics(5, r) @ turned, h.rotation_harmonics(5, g.mT @ r) @ f)


@pytest.mark.parametrize("n_psi", [7, 12, 24])
def test_factored_read_out_equals_the_sum_over_all_harmonics(n_psi):
    """View harmonics and one FFT over m give the same values as D at every rotation, for any number of angles."""
    l_max, generator = 6, torch.Generator().manual_seed(6)
    f = torch.randn(h.n_rotations(l_max), generator=generator, dtype=torch.float64)
    frame = random_rotations(5, generator=generator, dtype=torch.float64)
    psi = 0.1 + torch.arange(n_psi, dtype=torch.float64) * (2 * math.pi / n_psi)
    rotation = in_plane_rotation(psi) @ frame[:, None]
    expected = h.rotation_harmonics(l_max, rotation) @ f
    blocks = []
    for degree, part in enumerate(h.rotation_blocks(l_max)):
        c = h.to_real_basis(degree)
        blocks.append(c.mT @ f[part].view(2 * degree + 1, -1).to(c.dtype) @ c.conj())
    per_order = []
    for m, basis in enumerate(h.view_harmonics(l_max, frame)):
        rows = torch.cat([blocks[degree][degree + m] for degree in range(m, l_max + 1)])
        per_order.append(basis @ rows)
    values = h.in_plane_series(torch.stack(per_order, -1), n_psi, start_rad=0.1)
    _close(values, expected)


def test_too_coarse_a_grid_is_refused():
    """A grid with fewer rings than degrees cannot invert: BadInput says how many it takes."""
    with pytest.raises(BadInput, match="at least 7"):
        h.SphereGrid.of_degree(6, resolution=5)
