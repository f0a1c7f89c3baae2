from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryorbit.benchmarks.flex_motion import CLASH_A, Hinge
from cryorbit.benchmarks.flex_recipes import RECIPES, states_of
from cryorbit.benchmarks.flex_tasks import FlexTask, flex_data, with_pose_errors
from cryorbit.data import Atoms, Pose
from cryorbit.errors import BadFile, BadInput
from cryorbit.geometry.rotations import geodesic_angle, random_rotations, rotvec_to_matrix
from cryorbit.physics.formation import form_images
from cryorbit.physics.scatter import atoms_to_density
from laws import ROUND_OFF

SMALL = FlexTask(images=40, box=16)


@pytest.fixture(scope="module")
def made():
    return {name: states_of(name) for name in ("hinge", "hinge-circle", "lobes")}


@pytest.mark.parametrize("box", [16, 17])
def test_images_show_the_true_maps_in_the_true_poses(box):
    """Without noise image i is the map of its state in its true pose, and every map is its atoms' density."""
    data = flex_data("lobes", replace(SMALL, box=box, snr=float("inf")))
    assert data.stack.ctf is not None
    for number in (0, len(data.maps) - 1):
        density = atoms_to_density(
            data.atoms[number],
            box=box,
            pixel_size_A=data.stack.pixel_size_A,
            b_factor_A2=SMALL.b_factor_A2,
            centre=False,
        ).values
        # The states are centred once more, by less than float32 holds of positions of 100 A.
        bar = 1e-4 * density.abs().max().item()
        torch.testing.assert_close(data.maps[number], density, rtol=0, atol=bar)
        rows = torch.nonzero(data.state == number)[:, 0]
        expected = form_images(data.volume(number), data.truth[rows], data.stack.ctf[rows])
        bar = ROUND_OFF[torch.float32] * expected.abs().max().item()
        torch.testing.assert_close(data.stack.images[rows], expected, rtol=0, atol=bar)


def test_made_up_states_are_what_their_kind_says(made):
    """Motion keeps the atoms and moves one chain rigidly; composition keeps the positions of what is there."""
    for name in ("hinge", "hinge-circle"):
        states = made[name]
        first, other = states.atoms[0], states.atoms[7]
        assert first.chain is not None
        moving = torch.from_numpy(np.asarray(first.chain == "B"))
        still = (first.position_A - other.position_A)[~moving].norm(dim=1)
        moved = (first.position_A - other.position_A)[moving].norm(dim=1)
        assert still.max().item() < 1e-3  # float32 positions of 100 A
        assert moved.mean().item() > 5.0
        before, after = (torch.pdist(a.position_A[moving][::50].double()) for a in (first, other))
        torch.testing.assert_close(before, after, rtol=0, atol=1e-3)
    whole, less = made["lobes"].atoms[0], made["lobes"].atoms[3]
    kept = torch.from_numpy(~np.isin(whole.chain, ["C", "D"]))
    torch.testing.assert_close(whole.position_A[kept], less.position_A, rtol=0, atol=1e-3)
    assert torch.bincount(flex_data("lobes", SMALL).state).tolist() == [16, 12, 8, 4]


def test_a_circle_closes_and_a_path_does_not(made):
    """The step from the last state to the first is as long as any other on a circle; on a path the ends lie apart."""
    for name, closes in (("hinge-circle", True), ("hinge", False)):
        positions = torch.stack([a.position_A for a in made[name].atoms])
        step = (positions - positions.roll(1, 0)).square().sum((1, 2)).sqrt()
        assert bool((step[0] / step[1:].mean() - 1).abs() < 0.01) == closes


def test_poses_have_the_errors_asked_for():
    """Root mean squares of angle and shift within 5 standard errors; the truth and the images stay."""
    plain = flex_data("lobes", SMALL)
    wrong = flex_data("lobes", replace(SMALL, pose_error_deg=3.0, pose_error_px=2.0))
    assert torch.equal(plain.truth.rotation, wrong.truth.rotation)
    assert torch.equal(plain.stack.images[:], wrong.stack.images[:])
    assert plain.stack.pose is not None
    assert torch.equal(plain.stack.pose.shift_A, plain.truth.shift_A)
    assert torch.equal(wrong.with_truth().pose.rotation, plain.truth.rotation)  # pyright: ignore
    generator = torch.Generator().manual_seed(0)
    n = 4000
    rotation = random_rotations(n, generator=generator, dtype=torch.float64)
    truth = Pose(rotation, torch.zeros(n, 2, dtype=torch.float64))
    given = with_pose_errors(truth, angle_deg=3.0, shift_A=8.0, generator=generator)
    angle = torch.rad2deg(geodesic_angle(given.rotation, truth.rotation)).square().mean().sqrt().item()
    shift = given.shift_A.square().sum(1).mean().sqrt().item()
    assert (
        abs(angle / 3.0 - 1) < 5 / (6 * n) ** 0.5
    )  # a mean square of 3 n normals: relative error sqrt(2 / 3n), halved
    assert abs(shift / 8.0 - 1) < 5 / (4 * n) ** 0.5


def two_bars() -> Hinge:
    """A bar of C-alpha atoms along x that stays, and one along z that turns about the origin."""
    along = torch.arange(1, 8, dtype=torch.float32)[:, None] * 3.8
    position = torch.cat((along * torch.tensor([1.0, 0, 0]), along * torch.tensor([0, 0, 1.0])))
    n = len(position)
    atoms = Atoms(
        position,
        torch.full((n,), 6),
        torch.zeros(n),
        torch.ones(n),
        atom_name=np.array(["CA"] * n, dtype=object),
    )
    return Hinge(atoms, torch.arange(n) >= n // 2, torch.zeros(3))


def test_a_turn_onto_the_other_bar_is_a_clash():
    """Turned by a quarter about y the bars coincide; left alone they do not touch."""
    turns = rotvec_to_matrix(torch.tensor([[0, 0, 0], [0, torch.pi / 2, 0], [0, -torch.pi / 2, 0]]).double())
    count = two_bars().clashes(turns)
    assert count[0] == 0
    assert count[1] == 5  # of seven atoms, those at 3.8 and 7.6 A lie at the hinge
    assert count[2] == 0


def test_the_widest_free_axis_leads_past_the_other_bar():
    """A full turn about it keeps clear, at more angles than were tried; and its cone is wider than 40 degrees.

    A cone about the opposite of the other bar's direction, 45 degrees wide, is free, so no narrower one is the best.
    """
    hinge = two_bars()
    axis = hinge.widest_free_axis()
    angle = torch.linspace(0, 2 * torch.pi, 97, dtype=torch.float64)
    assert hinge.clashes(rotvec_to_matrix(angle[:, None] * axis)).max().item() == 0
    assert torch.rad2deg(torch.acos(axis @ hinge.arm())).item() > 40
    assert CLASH_A > 3.8


def test_random_turns_stay_in_their_cone_without_a_clash():
    """The arm stays within the cone, no turn bumps, and the seed decides them."""
    hinge = two_bars()
    turns, again = (
        hinge.random_turns(20, cone_deg=70, generator=torch.Generator().manual_seed(2)) for _ in range(2)
    )
    assert torch.equal(turns, again)
    arm = hinge.arm()
    assert (turns @ arm @ arm).min().item() > np.cos(np.radians(70))
    assert hinge.clashes(turns).max().item() == 0


def test_what_is_missing_is_named(tmp_path):
    """An unknown set, no folder, and a folder without the file are refused with a remedy."""
    with pytest.raises(BadInput, match="hinge-circle"):
        states_of("nothing")
    with pytest.raises(BadInput, match="--structures"):
        states_of("igg-1d")
    with pytest.raises(BadFile, match="1igt"):
        states_of("igg-1d", structures=tmp_path)
    with pytest.raises(BadInput, match="pose errors"):
        FlexTask(pose_error_deg=-1.0)


def in_one_frame(states) -> bool:
    """Whether three atoms in ten or more stay put from the first state to one three quarters on, by their labels."""
    places = []
    for atoms in (states.atoms[0], states.atoms[3 * len(states.atoms) // 4]):
        key = zip(atoms.chain, atoms.residue_number, atoms.atom_name, strict=True)
        places.append(dict(zip(key, atoms.position_A.numpy(), strict=True)))
    common = places[0].keys() & places[1].keys()
    # Atoms of the frames of a trajectory also shake, by 1 to 2 A.
    return bool(np.mean([np.linalg.norm(places[0][k] - places[1][k]) < 3.0 for k in common]) > 0.3)


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("hinge", "hinge-circle", "lobes")])
def test_recipes_from_structure_files(name, data_dir):
    """Every recipe gives states in one frame that fit their box, with a coordinate where the kind has one."""
    states = states_of(name, structures=data_dir / "structures")
    k = len(states.atoms)
    assert states.group.shape == states.population.shape == (k,)
    assert (states.coordinate is not None) == (states.kind in ("circle", "path"))
    assert max(a.position_A.abs().max().item() for a in states.atoms) < 0.45 * states.width_A
    assert in_one_frame(states)
    if states.coordinate is not None and states.kind == "path":
        assert states.coordinate[[0, -1]].tolist() == [0.0, 1.0]
