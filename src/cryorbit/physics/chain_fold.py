"""Chains of ideal bonds from torsions, and their folding in torsion space. numpy, float64, one thread.

A chain is the torsions (phi, psi, omega) of its residues; everything else is ideal. Folding changes torsions only, so
bonds stay ideal and no mirror image can arise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from cryorbit.physics import side_chains as ideal

_SIGMA_CA_A, _SIGMA_MIXED_A, _SIGMA_SIDE_A = 4.4, 4.4, 4.6
"""Below these distances two C-alphas, a C-alpha and a side chain, two side chains push each other away."""

_WELL_A, _PULL = (5.5, 8.0), 0.3
"""Side chains between these distances draw each other together with this force, which closes holes."""

_CA_WEIGHT = 3.0
"""How much more two C-alphas weigh than the other pairs: a side chain can still turn away, a backbone cannot."""

_EDGE_RG = 1.7
"""No C-alpha farther from the centre than this many radii of gyration; a uniform ball ends at 1.29."""

_NEAREST_CA_A = 3.8
"""Two C-alphas of different parts of a chain come no nearer in real proteins."""

_STEPS, _REPEATS = 400, 4
_STIFFNESS = 4.0
"""Of the pull of torsions to their start, per square radian; the repulsion of a pair is 3 per square angstrom."""

_PAIR_A = 5.0
"""Distance of paired C-alphas of neighbouring strands."""


class Chain(NamedTuple):
    """Backbone of a chain, one row per residue, angstrom."""

    n: np.ndarray
    ca: np.ndarray
    c: np.ndarray
    frame: np.ndarray
    """Axes (columns) fixed to N, CA, C, as `side_chains.residue_frames` has them."""


@dataclass(frozen=True, eq=False)
class FoldProblem:
    """What a chain is folded to.

    Parameters
    ----------
    side_A
        Shape (n, 3): the middle of each side chain in the residue's frame; zero where there is none.
    free
        Shape (n, 2), bool: which phi and psi may change.
    pairs
        Shape (m, 2): residues to be brought to the distance of paired strands.
    radius_A
        Radius of gyration of the C-alphas to be reached.
    """

    side_A: np.ndarray
    free: np.ndarray
    pairs: np.ndarray
    radius_A: float


def chain_of(torsion_rad: np.ndarray) -> Chain:
    """The backbone of torsions (n, 3): phi, psi, and omega to the next residue, the first C-alpha at the origin."""
    to_c = _turn(ideal.ANGLE_N_CA_C_DEG, torsion_rad[:, 0])
    to_n = to_c @ _turn(ideal.ANGLE_CA_C_N_DEG, torsion_rad[:, 1])
    step = to_n @ _turn(ideal.ANGLE_C_N_CA_DEG, torsion_rad[:, 2])
    start = np.concatenate((np.eye(3)[None], _running_product(step)[:-1]))
    move = (
        ideal.BOND_CA_C_A * to_c[:, :, 0]
        + ideal.BOND_C_N_A * to_n[:, :, 0]
        + ideal.BOND_N_CA_A * step[:, :, 0]
    )
    steps = np.einsum("nij,nj->ni", start, move)
    ca = np.concatenate((np.zeros((1, 3)), np.cumsum(steps, axis=0)[:-1]))
    n = ca - ideal.BOND_N_CA_A * start[:, :, 0]
    x = np.einsum("nij,nj->ni", start, to_c[:, :, 0])
    c = ca + ideal.BOND_CA_C_A * x
    z = np.cross(x, n - ca)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return Chain(n, ca, c, np.stack((x, np.cross(z, x), z), axis=2))


def fold(torsion_rad: np.ndarray, problem: FoldProblem, *, rng: np.random.Generator) -> np.ndarray:
    """Torsions (n, 3) of a compact chain without clashes, by annealed descent from `torsion_rad`.

    The energy is the sum of soft repulsion between C-alphas and side chains (quadratic below their contact distance), of
    attraction between side chains, of the squared errors of the radius of gyration and of the paired strands, of an
    edge, and of a weak pull of each torsion to where it started. Its exact gradient in the torsions costs O(n) once
    forces are known; steps are those of Adam (Kingma and Ba 2015) with noise that fades. The repulsion rises as it goes:
    the chain may pass through itself at first. Where C-alphas still clash, the chain is warmed up and annealed again, a
    few times at most; the best is kept.
    """
    best, least = torsion_rad, np.inf
    theta = torsion_rad
    for steps, heat in ((_STEPS, 1.0), *[(_STEPS // 2, 0.7)] * _REPEATS):
        theta = _annealed(theta, torsion_rad, problem, steps=steps, heat=heat, rng=rng)
        left = _clash_A(chain_of(theta).ca)
        if left < least:
            best, least = theta, left
        if least == 0:
            break
    return best


def _annealed(
    theta: np.ndarray,
    start: np.ndarray,
    problem: FoldProblem,
    *,
    steps: int,
    heat: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """One annealing; `heat` below 1 begins that far along the way."""
    theta = theta.copy()
    first, second = np.zeros_like(theta[:, :2]), np.zeros_like(theta[:, :2])
    near = _Near()
    for step in range(steps):
        t = 1 - heat + heat * step / steps
        chain = chain_of(theta)
        side = chain.ca + np.einsum("nij,nj->ni", chain.frame, problem.side_A)
        hardness = 0.02 + 3.0 * min(1.0, t / 0.7) ** 2
        slope = _torsion_gradient(chain, side, *_forces(chain, side, problem, hardness=hardness, near=near))
        slope += _STIFFNESS * _wrapped(theta - start)[:, :2]
        slope *= problem.free
        first = 0.85 * first + 0.15 * slope
        second = 0.97 * second + 0.03 * slope**2
        unbiased = first / (1 - 0.85 ** (step + 1)) / (np.sqrt(second / (1 - 0.97 ** (step + 1))) + 1e-3)
        rate = 0.08 * (1 - t) + 0.004
        noise = 0.5 * rate * max(0.0, 1 - t / 0.6) * rng.standard_normal(slope.shape)
        theta[:, :2] += problem.free * (noise - rate * unbiased)
    return theta


def _clash_A(ca: np.ndarray) -> float:
    """How much C-alphas three or more residues apart lie nearer than 3.8 A, summed."""
    near = KDTree(ca).query_pairs(_NEAREST_CA_A, output_type="ndarray")
    i, j = near[np.abs(near[:, 0] - near[:, 1]) > 2].T
    return float((_NEAREST_CA_A - np.linalg.norm(ca[i] - ca[j], axis=1)).sum())


class _Near:
    """Pairs of sites that may touch, and of side chains that may attract, found anew every few steps."""

    def __init__(self) -> None:
        self.calls = 0
        self.touching = self.attracted = np.zeros((0, 2), dtype=np.int64)

    def update(self, ca: np.ndarray, side: np.ndarray) -> None:
        """Count a step; look again when it is time."""
        n = len(ca)
        if self.calls % 4 == 0:
            pairs = _pairs(np.concatenate((ca, side)), _SIGMA_SIDE_A + 2.5)
            self.touching = pairs[np.abs(pairs[:, 0] % n - pairs[:, 1] % n) > 2]
        if self.calls % 8 == 0:
            pairs = _pairs(side, _WELL_A[1] + 1.5)
            self.attracted = pairs[np.abs(pairs[:, 0] - pairs[:, 1]) > 3]
        self.calls += 1


def _pairs(points: np.ndarray, within_A: float) -> np.ndarray:
    tree = KDTree(points, balanced_tree=False, compact_nodes=False)
    return tree.query_pairs(within_A, output_type="ndarray")


def _forces(
    chain: Chain, side: np.ndarray, problem: FoldProblem, *, hardness: float, near: _Near
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of the energy at C-alphas and at side chains, each (n, 3)."""
    n = len(side)
    sites = np.concatenate((chain.ca, side))
    near.update(chain.ca, side)
    i, j = near.touching.T
    apart = sites[i] - sites[j]
    distance = np.sqrt((apart**2).sum(1)) + 1e-6
    kind = (i >= n).astype(np.int64) + (j >= n)
    sigma = np.array([_SIGMA_CA_A, _SIGMA_MIXED_A, _SIGMA_SIDE_A])[kind]
    weight = np.array([_CA_WEIGHT, 1.0, 1.0])[kind]
    push = (2 * hardness) * weight * np.minimum(distance - sigma, 0.0) / distance
    total = _scatter(2 * n, i, j, push[:, None] * apart)
    at_ca, at_side = total[:n], total[n:]
    i, j = near.attracted.T
    apart = side[i] - side[j]
    distance = np.sqrt((apart**2).sum(1)) + 1e-6
    pull = _PULL * ((distance > _WELL_A[0]) & (distance < _WELL_A[1])) / distance
    at_side += _scatter(n, i, j, pull[:, None] * apart)
    away = chain.ca - chain.ca.mean(0)
    radius = np.sqrt((away**2).sum(1).mean())
    at_ca += 1.5 * np.clip(radius - problem.radius_A, -3.0, 3.0) / radius * away
    far = np.sqrt((away**2).sum(1)) + 1e-6
    at_ca += 0.5 * (np.clip(far - _EDGE_RG * problem.radius_A, 0.0, 6.0) / far)[:, None] * away
    if len(problem.pairs):
        i, j = problem.pairs.T
        apart = chain.ca[i] - chain.ca[j]
        distance = np.sqrt((apart**2).sum(1)) + 1e-6
        at_ca += _scatter(n, i, j, (np.clip(distance - _PAIR_A, -1.0, 3.0) / distance)[:, None] * apart)
    return at_ca, at_side


def _scatter(n: int, i: np.ndarray, j: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Sum of +value at i and -value at j."""
    columns = [np.bincount(i, value[:, a], n) - np.bincount(j, value[:, a], n) for a in range(3)]
    return np.stack(columns, axis=1).astype(np.float64)  # bincount of nothing counts in integers


def _torsion_gradient(chain: Chain, side: np.ndarray, at_ca: np.ndarray, at_side: np.ndarray) -> np.ndarray:
    """Slope of the energy along phi and psi, (n, 2): axis . sum over what turns of (x - point) x gradient."""
    moment = np.cross(chain.ca, at_ca) + np.cross(side, at_side)
    force = at_ca + at_side
    # Residue k itself turns with phi (its C-alpha is on the axis), not with psi.
    after_moment, after_force = (np.cumsum(a[::-1], axis=0)[::-1] for a in (moment, force))
    slopes = []
    for axis, shift in ((chain.ca - chain.n, 0), (chain.c - chain.ca, 1)):
        m, f = (np.concatenate((a[shift:], np.zeros((shift, 3)))) for a in (after_moment, after_force))
        unit = axis / np.linalg.norm(axis, axis=1, keepdims=True)
        slopes.append((unit * (m - np.cross(chain.ca, f))).sum(1))
    return np.stack(slopes, axis=1)


def _turn(angle_deg: float, torsion_rad: np.ndarray) -> np.ndarray:
    """From the frame of one bond (x along it, z normal to the last three atoms) to that of the next, (n, 3, 3)."""
    theta = np.radians(angle_deg)
    cos, sin = np.cos(torsion_rad), np.sin(torsion_rad)
    a, b = np.full_like(cos, np.cos(theta)), np.full_like(cos, np.sin(theta))
    zero = np.zeros_like(cos)
    rows = ((-a, -b, zero), (b * cos, -a * cos, -sin), (b * sin, -a * sin, cos))
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def _running_product(m: np.ndarray) -> np.ndarray:
    """m_0, m_0 m_1, m_0 m_1 m_2, ... by doubling (Hillis and Steele 1986)."""
    total, reach = m.copy(), 1
    while reach < len(m):
        total = np.concatenate((total[:reach], total[:-reach] @ total[reach:]))
        reach *= 2
    return total


def _wrapped(angle_rad: np.ndarray) -> np.ndarray:
    """To -pi ... pi."""
    return (angle_rad + np.pi) % (2 * np.pi) - np.pi
