"""A made-up protein complex from ideal geometry, so that a demonstration needs no download."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cryorbit.data import Atoms
from cryorbit.physics.side_chains import SIDE_CHAIN, place_atom, residue_frames

_PHI_DEG, _PSI_DEG, _OMEGA_DEG = -57.8, -47.0, 180.0
_RISE_A = 1.54
_SPACING_A = 10.0
_LONGEST_A = 45.0

_KINDS = ("ALA", "SER", "VAL", "LEU", "GLU", "LYS", "ASN", "MET")
_BACKBONE = (("N", 7), ("CA", 6), ("C", 6), ("O", 8), ("CB", 6))
_HALF_AXES_A = (
    (50.0, 42.0, 36.0),
    (42.0, 28.0, 23.0),
    (27.0, 42.0, 23.0),
    (35.0, 28.0, 25.0),
    (25.0, 23.0, 36.0),
    (20.0, 18.0, 23.0),
)
_CENTRES_A = (
    (0.0, 0.0, 0.0),
    (58.0, 12.0, 10.0),
    (-20.0, 55.0, 14.0),
    (-36.0, -28.0, 44.0),
    (20.0, -46.0, -38.0),
    (46.0, 38.0, -30.0),
)


@dataclass(frozen=True, eq=False)
class _Domain:
    centre: Tensor
    frame: Tensor
    half_axes: Tensor

    def contains(self, point: Tensor) -> Tensor:
        local = (point - self.centre) @ self.frame
        return ((local / self.half_axes) ** 2).sum(-1) <= 1


class _Residue(NamedTuple):
    names: list[str]
    numbers: list[int]
    position: Tensor


def synthetic_complex(*, generator: torch.Generator) -> Atoms:
    """An asymmetric, chiral complex of about 500 kDa and 200 angstrom: lobes packed with ideal helices.

    The six lobes are ellipsoids of different size, placed so that no rotation or mirror maps the
    outline onto itself; helices (phi -57.8, psi -47 degrees, placed atom by atom from bond lengths, angles
    and torsions) stand on a hexagonal lattice of 10 angstrom with its own direction in each lobe, which is
    the density of protein. Some cavities give it features at 15-20 angstrom. Side chains of neighbouring
    helices may overlap: it is a density to image, not a structure to refine. The generator decides everything
    that is not fixed here.
    """
    domains = _domains(generator)
    cavities = _cavities(domains, generator)
    helix = _ideal_helix(int(_LONGEST_A / _RISE_A) + 1)
    parts: list[tuple[int, Tensor]] = []
    for number, domain in enumerate(domains):
        for start, axis, side, length in _helix_lines(domain, generator):
            residues = int(length / _RISE_A)
            frame = torch.stack((side, torch.linalg.cross(axis, side), axis), dim=1)
            backbone = helix[:residues] @ frame.T + start
            middle = backbone[:, 1]
            taken = torch.zeros(residues, dtype=torch.bool)
            for earlier in domains[:number]:
                taken |= earlier.contains(middle)
            for centre, radius in cavities:
                taken |= (middle - centre).norm(dim=1) < radius
            if int((~taken).sum()) >= 6:
                parts.append((number, backbone[~taken]))
    return _dress(parts, generator)


def molecular_weight_kDa(atoms: Atoms) -> float:
    """Mass of the atoms, hydrogens guessed at 7 % of it where the model has none."""
    mass = {1: 1.008, 6: 12.011, 7: 14.007, 8: 15.999, 12: 24.305, 15: 30.974, 16: 32.06}
    number, count = torch.unique(atoms.atomic_number, return_counts=True)
    total = sum(mass.get(z, 2.0 * z) * c for z, c in zip(number.tolist(), count.tolist(), strict=True))
    return total / 1000 * (1.0 if 1 in number.tolist() else 1.07)


def _ideal_helix(residues: int) -> Tensor:
    """N, CA, C, O, CB of each residue, shape (residues, 5, 3), axis along z through the origin."""
    chain = [
        torch.tensor(v, dtype=torch.float64) for v in ((0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.2, 0.0, 0.0))
    ]
    torsions = (_PSI_DEG, _OMEGA_DEG, _PHI_DEG)
    bonds, angles = (1.329, 1.458, 1.525), (116.6, 121.7, 111.0)
    for i in range(3 * (residues + 2)):
        k = i % 3  # psi places N, omega places CA, phi places C
        chain.append(place_atom(*chain[-3:], bond_A=bonds[k], angle_deg=angles[k], torsion_deg=torsions[k]))
    main = torch.stack(chain[6:]).view(-1, 3, 3)  # the first residue after the arbitrary start is dropped
    rows = []
    for i in range(residues):
        n, ca, c = main[i]
        oxygen = place_atom(n, ca, c, bond_A=1.231, angle_deg=120.1, torsion_deg=_PSI_DEG + 180)
        beta = place_atom(c, n, ca, bond_A=1.53, angle_deg=110.1, torsion_deg=-122.8)
        rows.append(torch.stack((n, ca, c, oxygen, beta)))
    helix = torch.stack(rows)
    return _along_z(helix)


def _along_z(helix: Tensor) -> Tensor:
    """Turn and move a helix so that its axis is z, starting at z = 0."""
    ca = helix[:, 1]
    # Second differences of a helix point at its axis and stand at right angles to it.
    inward = ca[2:] - 2 * ca[1:-1] + ca[:-2]
    axis = torch.nn.functional.normalize(torch.linalg.cross(inward[:-1], inward[1:]).mean(0), dim=0)
    if float(axis @ (ca[-1] - ca[0])) < 0:
        axis = -axis
    x = torch.nn.functional.normalize(inward[0] - axis * (axis @ inward[0]), dim=0)
    local = helix @ torch.stack((x, torch.linalg.cross(axis, x), axis), dim=1)
    flat = local[:, 1, :2]
    # The centre of a circle: |p|^2 = 2 p . centre + constant.
    design = torch.cat((2 * flat, torch.ones(len(flat), 1, dtype=flat.dtype)), dim=1)
    centre = torch.linalg.lstsq(design, (flat**2).sum(1, keepdim=True)).solution[:2, 0]
    return local - torch.stack((centre[0], centre[1], local[0, 1, 2]))


def _domains(generator: torch.Generator) -> list[_Domain]:
    domains = []
    for centre, half_axes in zip(_CENTRES_A, _HALF_AXES_A, strict=True):
        jitter = 3.0 * torch.randn(3, generator=generator, dtype=torch.float64)
        turn = torch.linalg.qr(
            torch.eye(3, dtype=torch.float64)
            + 0.5 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        ).Q
        turn = turn * torch.linalg.det(turn)
        domains.append(
            _Domain(
                torch.tensor(centre, dtype=torch.float64) + jitter,
                turn,
                torch.tensor(half_axes, dtype=torch.float64),
            )
        )
    return domains


def _cavities(domains: list[_Domain], generator: torch.Generator) -> list[tuple[Tensor, float]]:
    """Two holes per lobe, at half its radius."""
    holes = []
    for domain in domains:
        for _ in range(2):
            direction = torch.nn.functional.normalize(
                torch.randn(3, generator=generator, dtype=torch.float64), dim=0
            )
            radius = 8.0 + 5.0 * float(torch.rand(1, generator=generator))
            holes.append((domain.centre + domain.frame @ (0.5 * direction * domain.half_axes), radius))
    return holes


def _helix_lines(domain: _Domain, generator: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    """Start, axis, a side at a random angle, and length of each helix that fits into an ellipsoid."""
    lines = []
    a, b, c = domain.half_axes.tolist()
    step_y = _SPACING_A * math.sqrt(3) / 2
    for j in range(-int(b / step_y) - 1, int(b / step_y) + 2):
        for i in range(-int(a / _SPACING_A) - 1, int(a / _SPACING_A) + 2):
            x, y = (i + 0.5 * (j % 2)) * _SPACING_A, j * step_y
            inside = 1 - (x / a) ** 2 - (y / b) ** 2
            if inside <= 0:
                continue
            half = c * math.sqrt(inside)
            pieces = max(1, math.ceil(2 * half / _LONGEST_A))
            gap = 5.0 if pieces > 1 else 0.0
            length = (2 * half - gap * (pieces - 1)) / pieces
            for piece in range(pieces):
                up = bool(torch.rand(1, generator=generator) < 0.5)
                angle = float(2 * math.pi * torch.rand(1, generator=generator))
                bottom = -half + piece * (length + gap)
                start = torch.tensor([x, y, bottom if up else bottom + length], dtype=torch.float64)
                axis = domain.frame[:, 2] * (1.0 if up else -1.0)
                side = math.cos(angle) * domain.frame[:, 0] + math.sin(angle) * domain.frame[:, 1]
                lines.append((domain.centre + domain.frame @ start, axis, side, length))
    return lines


def _side_chain(kind: str) -> _Residue:
    """Atoms of a residue in the frame of its backbone as `_ideal_helix` places the first residue."""
    helix = _ideal_helix(4)[0]
    at = {name: position for (name, _), position in zip(_BACKBONE, helix, strict=True)}
    names, numbers = [name for name, _ in _BACKBONE], [z for _, z in _BACKBONE]
    for name, z, parents, bond, angle, torsion in SIDE_CHAIN[kind]:
        first, second, third = (at[p] for p in parents)
        at[name] = place_atom(first, second, third, bond_A=bond, angle_deg=angle, torsion_deg=torsion)
        names.append(name)
        numbers.append(z)
    return _Residue(names, numbers, torch.stack([at[n] for n in names]))


def _dress(parts: list[tuple[int, Tensor]], generator: torch.Generator) -> Atoms:
    """Give every residue a side chain and gather the atoms of all helices."""
    templates = [(kind, _side_chain(kind)) for kind in _KINDS]
    position, number, chain, residue, atom, index = [], [], [], [], [], []
    serial: dict[int, int] = {}
    for domain, backbone in parts:
        kinds = torch.randint(len(templates), (len(backbone),), generator=generator).tolist()
        for row, kind in zip(backbone, kinds, strict=True):
            name, template = templates[kind]
            turn = residue_frames(*row[:3]) @ residue_frames(*template.position[:3]).T
            position.append((template.position - template.position[1]) @ turn.T + row[1])
            number += template.numbers
            serial[domain] = serial.get(domain, 0) + 1
            size = len(template.names)
            chain += [chr(ord("A") + domain)] * size
            residue += [name] * size
            atom += template.names
            index += [serial[domain]] * size
    xyz = torch.cat(position).to(torch.float32)
    return Atoms(
        xyz - xyz.mean(0),
        torch.tensor(number),
        torch.full((len(number),), 100.0),
        torch.ones(len(number)),
        chain=np.array(chain),
        residue_name=np.array(residue),
        atom_name=np.array(atom),
        residue_number=np.array(index),
    )
