"""Laws of the rounds: refinement brings poses to the truth, and what half 1 shows does not reach half 0."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from cryorbit.data.particles import MemoryImages
from cryorbit.geometry.rotations import geodesic_angle, rotvec_to_matrix
from cryorbit.geometry.symmetry import point_group
from cryorbit.inference.engine import Workers, workers
from cryorbit.inference.half_maps import HalfMaps, solve_halves
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import Observations, support_mask
from cryorbit.inference.rounds import PoseTable, centre_px, insert_block, move_origin, refine_block
from posed_stacks import PosedStack, posed_stack

N, RADIUS = 160, 10
ROWS = torch.arange(N)
HALVES = (ROWS * 7 % 11) % 2
LATTICE = Lattice(2 * (RADIUS + 4))
ONE = torch.eye(3)[None]


@lru_cache(maxsize=1)
def stack() -> PosedStack:
    return posed_stack(N, noise=0.5, ctf=True, seed=6)


def table(rotation: Tensor, shift_px: Tensor) -> PoseTable:
    poses = PoseTable.empty(N)
    poses.rotation, poses.shift_px = rotation.clone(), shift_px.clone()
    return poses


def perturbed() -> PoseTable:
    g = torch.Generator().manual_seed(0)
    turn = rotvec_to_matrix(0.07 * torch.randn(N, 3, generator=g))
    return table(turn @ stack().rotation, stack().shift_px + 0.5 * torch.randn(N, 2, generator=g))


def inserted(observed: Observations, poses: PoseTable, team: Workers) -> tuple[Tensor, Tensor]:
    raw = (LATTICE.zeros(), LATTICE.zeros())
    insert_block(observed, poses, ROWS, HALVES[ROWS], LATTICE, raw, ONE, radius=RADIUS, team=team)
    return raw


def solved(raw: tuple[Tensor, Tensor], *, joined_radius: float = 0.0) -> HalfMaps:
    mask = support_mask(LATTICE.n, 1.15 * stack().observed.particle_radius_px * LATTICE.n / stack().box)
    return solve_halves(raw, LATTICE, mask, radius=RADIUS, joined_radius=joined_radius)


def refined(observed: Observations, poses: PoseTable, maps: HalfMaps, team: Workers, times: int = 1) -> None:
    for _ in range(times):
        refine_block(
            observed,
            poses,
            ROWS,
            HALVES[ROWS],
            maps,
            radius=RADIUS - 1,
            iterations=2,
            shift_sd_px=3.0,
            team=team,
        )


def errors_deg(poses: PoseTable) -> Tensor:
    return geodesic_angle(poses.rotation, stack().rotation).rad2deg()


@lru_cache(maxsize=1)
def maps_of_the_truth() -> HalfMaps:
    with workers(1) as team:
        return solved(inserted(stack().observed, table(stack().rotation, stack().shift_px), team))


def test_refinement_reduces_the_error():
    """Poses off by 7 degrees and 0.7 px come to within 2 degrees and 0.3 px in the median, and fit better."""
    poses = perturbed()
    start, shift_start = errors_deg(poses), (poses.shift_px - stack().shift_px).norm(dim=1)
    with workers(1) as team:
        refined(stack().observed, poses, maps_of_the_truth(), team)
        first = poses.log_likelihood.clone()
        refined(stack().observed, poses, maps_of_the_truth(), team, times=2)
    assert bool((poses.log_likelihood >= first - 1e-3 * first.abs()).all())
    assert float(errors_deg(poses).median()) < min(2.0, 0.35 * float(start.median()))
    shift_error = (poses.shift_px - stack().shift_px).norm(dim=1)
    assert float(shift_error.median()) < min(0.3, 0.5 * float(shift_start.median()))
    identity = poses.rotation @ poses.rotation.mT
    torch.testing.assert_close(identity, torch.eye(3).expand(N, 3, 3), rtol=0, atol=1e-5)
    assert 0.3 < float(poses.angle_sd_deg.median() / errors_deg(poses).median()) < 1.5


def changed_in_half_1() -> Observations:
    """Other images in half 1, the same statistics."""
    observed = stack().observed
    images = observed.stack.images[:].clone()
    g = torch.Generator().manual_seed(1)
    images[HALVES == 1] = images.std() * torch.randn(images[HALVES == 1].shape, generator=g)
    return replace(observed, stack=replace(observed.stack, images=MemoryImages(images)))


def test_half_0_does_not_see_half_1():
    """Other images in half 1: poses, sums and unfiltered map of half 0 are the same to the bit, those of half 1 not."""
    results = []
    with workers(1) as team:
        for observed in (stack().observed, changed_in_half_1()):
            poses = perturbed()
            refined(observed, poses, maps_of_the_truth(), team)
            raw = inserted(observed, poses, team)
            results.append((poses, raw, solved(raw)))
    (p, raw, maps), (q, raw_changed, maps_changed) = results
    mine = HALVES == 0
    assert torch.equal(p.rotation[mine], q.rotation[mine])
    assert torch.equal(p.shift_px[mine], q.shift_px[mine])
    assert torch.equal(raw[0], raw_changed[0])
    assert torch.equal(maps.maps[0], maps_changed.maps[0])
    assert not torch.equal(p.rotation[HALVES == 1], q.rotation[HALVES == 1])
    assert not torch.equal(raw[1], raw_changed[1])


def test_halves_share_only_what_is_joined():
    """Noise in half 1: its filtered map follows half 0 below `joined_radius` and nowhere without it."""
    with workers(1) as team:
        raw = inserted(changed_in_half_1(), table(stack().rotation, stack().shift_px), team)
    shell = LATTICE.shells()

    def likeness(joined_radius: float, inside: Tensor) -> float:
        first, second = (half[inside] for half in solved(raw, joined_radius=joined_radius).halves)
        return float((first * second.conj()).real.sum() / (first.norm() * second.norm()))

    low, high = (shell >= 2) & (shell <= 4), (shell >= 8) & (shell <= RADIUS - 1)
    assert likeness(6.0, low) > 0.95
    assert abs(likeness(6.0, high)) < 0.4
    assert abs(likeness(0.0, low)) < 0.7  # few points, and the one mask


def test_workers_do_not_matter():
    """Two workers give the poses and sums of one, to the bit."""
    outcomes = []
    for count in (1, 2):
        with workers(count) as team:
            poses = perturbed()
            refined(stack().observed, poses, maps_of_the_truth(), team)
            outcomes.append((poses.rotation, *inserted(stack().observed, poses, team)))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_a_table_comes_back_from_its_state():
    """`restore(state())` is the table, among whatever else a checkpoint holds."""
    poses = perturbed()
    state = {"round": 3, "raw0": LATTICE.zeros(), **poses.state()}
    again = PoseTable.restore(state)
    for name, value in vars(poses).items():
        assert torch.equal(getattr(again, name), value)


def test_doubtful_are_the_worst_and_the_ambiguous():
    """At least the worst twentieth, all with a rival, never more than 40 %."""
    poses = PoseTable.empty(100)
    poses.explained = torch.linspace(0.9, 1.1, 100)
    poses.confidence = torch.ones(100)
    assert set(range(5)) <= set(poses.doubtful().tolist())
    assert len(poses.doubtful()) < 15
    poses.confidence[70] = 0.6
    assert 70 in poses.doubtful().tolist()
    poses.confidence[:] = 0.5
    assert poses.doubtful().tolist() == list(range(40))


CENTRE = torch.tensor([3.0, -2.0, 4.0])
SPREAD_PX = 2.0
"""Of the images' own shifts, each axis; N of them leave the centre an error of sqrt(3 / (2 N)) times that."""


def off_centre() -> PoseTable:
    """Poses of a particle whose middle lies at CENTRE, seen near the middles of the images."""
    g = torch.Generator().manual_seed(1)
    rotation = stack().rotation
    found = table(rotation, SPREAD_PX * torch.randn(N, 2, generator=g) - (rotation @ CENTRE)[:, :2])
    found.confidence[:] = 1
    return found


def centre_of(poses: PoseTable, symmetry: str = "C1") -> Tensor:
    return centre_px(poses.rotation, poses.shift_px, poses.confidence, point_group(symmetry).float())


def test_the_centre_is_the_point_that_images_show_in_their_middles():
    poses, error = off_centre(), SPREAD_PX * (1.5 / N) ** 0.5
    torch.testing.assert_close(centre_of(poses).float(), CENTRE, atol=4 * error, rtol=0)
    poses.shift_px[::4] += 40.0  # wrong poses, and known to be
    poses.confidence[::4] = 0
    torch.testing.assert_close(centre_of(poses).float(), CENTRE, atol=5 * error, rtol=0)


def test_the_centre_of_a_symmetric_particle_lies_on_its_axes():
    found = centre_of(off_centre())
    along = centre_of(off_centre(), "C3")
    torch.testing.assert_close(along, found * torch.tensor([0.0, 0.0, 1.0]), atol=1e-6, rtol=0)
    assert float(centre_of(off_centre(), "D2").abs().max()) < 1e-6


def test_a_moved_origin_leaves_every_point_where_images_show_it():
    """x of the particle is x - c in the new frame; the new frame's centre is its origin."""
    before, after = off_centre(), off_centre()
    point = centre_of(before)
    move_origin(after, point)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    seen = [
        torch.einsum("nij,pj->npi", p.rotation[:, :2], at) + p.shift_px[:, None]
        for p, at in ((before, x), (after, x - point.float()))
    ]
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=0)
    assert float(centre_of(after).norm()) < 1e-5
