"""Laws of locating: the true pose is found from nothing, symmetry mates are one mode, known poses are not lost."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from cryorbit.geometry.rotations import geodesic_angle, rotvec_to_matrix
from cryorbit.geometry.so3_grid import healpix_directions, spacing_deg
from cryorbit.geometry.symmetry import point_group
from cryorbit.inference.locate import MODE_APART_DEG, grid_modes, locate
from cryorbit.inference.observations import crop_images
from cryorbit.inference.ring_em import level_for, make_view
from posed_stacks import PosedStack, posed_stack

RADIUS, SEARCH_RADIUS = 9, 7
ONE = torch.eye(3)[None]

REFINED_DEG, REFINED_PX = 0.5, 0.05
"""Noise-free images against their own map, the reads of whose lattice are off by 1 %."""


@lru_cache(maxsize=4)
def stack(ctf: bool) -> PosedStack:
    return posed_stack(12, ctf=ctf, seed=5)


def view_of(posed: PosedStack, half: torch.Tensor):
    level = level_for(SEARCH_RADIUS, posed.observed.particle_radius_px, box=posed.box)
    view = make_view(
        half,
        level,
        healpix_directions(level.order),
        n=posed.box,
        box=posed.box,
        reach_px=4.0,
        shift_sd_px=2.0,
        ctf=posed.observed.stack.ctf,
        pixel_size_A=posed.observed.pixel_size_A,
    )
    return view, spacing_deg(level.order)


def located(posed: PosedStack, *, group=ONE, known=None, iterations=6):
    half = posed.half()
    return locate(
        posed.observed,
        torch.arange(len(posed.rotation)),
        view_of(posed, half)[0],
        half,
        group,
        radius=RADIUS,
        iterations=iterations,
        shift_sd_px=10.0,
        crop=posed.box,
        known=known,
    )


@pytest.mark.parametrize("ctf", [False, True])
def test_the_true_pose_is_found_from_nothing(ctf):
    """Noise-free projections: pose and shift to the accuracy of refinement, without a rival."""
    posed = stack(ctf)
    found = located(posed)
    error = geodesic_angle(found.rotation, posed.rotation).rad2deg()
    assert float(error.max()) < REFINED_DEG
    assert float((found.shift_px - posed.shift_px).norm(dim=1).max()) < REFINED_PX
    assert float(found.confidence.min()) > 0.99
    assert float(found.entropy.max()) < 0
    assert float((found.explained - 1).abs().max()) < 0.1


def test_a_mode_on_the_grid_is_a_neighbour_of_the_truth():
    """Before refinement one of the modes, mostly the first, is at most a step of the grid away; modes lie apart."""
    posed = stack(False)
    view, step_deg = view_of(posed, posed.half())
    rows = torch.arange(len(posed.rotation))
    cropped = crop_images(posed.observed.transforms(rows), posed.box)
    modes = grid_modes(posed.observed, rows, cropped, view, ONE)
    every = posed.rotation[:, None].expand_as(modes.rotation)
    error = geodesic_angle(modes.rotation, every).rad2deg()
    assert float(error.amin(1).max()) < step_deg
    assert float((error[:, 0] < step_deg).float().mean()) > 0.8
    nearest = modes.shift_px[rows, error.argmin(1)]
    assert float((nearest - posed.shift_px).norm(dim=1).max()) < 1.5
    apart = geodesic_angle(modes.rotation[:, 0], modes.rotation[:, 1]).rad2deg()
    same = apart < 1e-3  # a mode repeated where there was no other
    assert bool((same | (apart > MODE_APART_DEG - 1e-3)).all())


def test_symmetry_mates_are_one_mode():
    """With a group, modes that it makes equal are not listed twice."""
    posed, group = stack(False), point_group("C2").float()
    view, _ = view_of(posed, posed.half())
    rows = torch.arange(4)
    modes = grid_modes(
        posed.observed, rows, crop_images(posed.observed.transforms(rows), posed.box), view, group
    )
    mates = modes.rotation[:, :1] @ group
    nearest = geodesic_angle(mates, modes.rotation[:, 1:2]).rad2deg().amin(1)
    same = geodesic_angle(modes.rotation[:, 0], modes.rotation[:, 1]).rad2deg() < 1e-3
    assert bool((same | (nearest > MODE_APART_DEG - 1e-3)).all())


def test_known_poses_compete():
    """The likelihood with known poses in the race is never below that without; a good known pose is not lost."""
    posed = stack(False)
    plain = located(posed, iterations=1)
    with_truth = located(posed, iterations=1, known=(posed.rotation, posed.shift_px))
    assert bool((with_truth.log_likelihood >= plain.log_likelihood - 1e-3 * plain.log_likelihood.abs()).all())
    assert float(geodesic_angle(with_truth.rotation, posed.rotation).rad2deg().max()) < REFINED_DEG
    turn = rotvec_to_matrix(torch.tensor([2.0, 0.0, 0.0]))
    astray = located(posed, known=(turn @ posed.rotation, posed.shift_px))
    assert float(geodesic_angle(astray.rotation, posed.rotation).rad2deg().max()) < REFINED_DEG
