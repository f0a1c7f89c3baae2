"""Laws of the coarse stage's parts: plans, grids, crops, what is measured of a stack, one search."""

import math

import numpy as np
import pytest
import torch

from cryorbit.data import CTF, MemoryImages, ParticleStack
from cryorbit.fourier.centred import fft_centred
from cryorbit.geometry.rotations import geodesic_angle
from cryorbit.geometry.so3_grid import healpix_directions
from cryorbit.inference.coarse import COLD, CoarsePlan, CoarseStage
from cryorbit.inference.engine import Workers
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import (
    astigmatic_orders,
    crop_images,
    mean_image_radius_px,
    mean_image_shift_sd_px,
    observe,
    particle_radius_px,
    support_mask,
)
from cryorbit.inference.ring_em import (
    crop_small,
    level_for,
    make_view,
    poses_of,
    random_directions,
    search_images,
    shift_grid,
)
from cryorbit.physics.interpolation import gather
from physics_models import GaussianBlobs, uniform_rotations

ALONE = Workers(None, 1)


def _plan(**changes):
    values = {
        "n_starts": 4,
        "ramp": 24,
        "hold": 6,
        "batch": 30,
        "forgetting": 0.9,
        "first_radius": 4,
        "last_radius": 9,
        "box": 24,
    }
    return CoarsePlan(**(values | changes))


def test_plans_grow_outwards_and_drop_starts():
    """The radius never falls; starts are halved, then one is left, and it and its kicked twin after the ramp."""
    plan = _plan()
    radii = [plan.radius(b) for b in range(plan.batches)]
    alive = [plan.alive(b) for b in range(plan.batches)]
    assert radii == sorted(radii)
    assert (radii[0], radii[-1]) == (4, 9)
    assert set(radii[plan.ramp :]) == {9}
    rising = alive[: plan.ramp]
    assert rising == sorted(rising, reverse=True)
    assert sorted(set(rising)) == [1, 2, 4]
    assert set(alive[plan.ramp :]) == {2}
    assert all(_plan(n_starts=1).alive(b) == 1 for b in range(plan.ramp))


def test_annealed_plans_cool_and_keep_more_than_one_start():
    """From the noise's own temperature to COLD, never warmer again; a quarter of the starts lives to the end."""
    plan = _plan(n_starts=8, annealed=True)
    warmth = [plan.temperature(b) for b in range(plan.batches)]
    assert warmth == sorted(warmth, reverse=True)
    assert (warmth[0], warmth[-1]) == (1.0, COLD)
    assert [plan.alive(b) for b in (0, plan.ramp // 2, plan.ramp - 1, plan.batches - 1)] == [8, 4, 2, 2]
    assert all(_plan().temperature(b) == 1.0 for b in range(plan.batches))


@pytest.mark.parametrize("radius", [3, 7, 14, 25])
@pytest.mark.parametrize("particle", [8.0, 20.0, 45.0])
def test_levels_resolve_what_they_keep(radius, particle):
    """n_psi and n_angles hold every order kept (Nyquist), n_psi has half turns, order 0 is not all."""
    level = level_for(radius, particle, box=128)
    assert level.n_psi >= 2 * (level.m_max + 1)
    assert level.n_psi % 4 == 0
    assert level.n_angles >= 2 * level.m_max + 2
    assert level.n_angles % 2 == 0
    assert level.m_max >= 2 * math.pi * radius * particle / 128
    # One step of shift turns the outermost ring's phase by less than half a turn.
    assert level.shift_step_px * radius / 128 < 0.5


@pytest.mark.parametrize(("reach", "step"), [(6.0, 2.0), (5.0, 1.3), (0.5, 2.0)])
def test_shifts_fill_a_disc(reach, step):
    """With every t its -t, and 0; none beyond reach (or one step); neighbours are a step apart."""
    shifts = shift_grid(reach, step)
    assert (shifts == 0).all(1).any()
    assert {tuple(s) for s in shifts.tolist()} == {tuple(s) for s in (-shifts).tolist()}
    assert float(shifts.norm(dim=1).max()) <= max(reach, step) * 1.01
    distance = torch.cdist(shifts, shifts) + 1e3 * torch.eye(len(shifts))
    torch.testing.assert_close(distance.amin(1), torch.full((len(shifts),), step))


def _half_transform(images):
    return torch.fft.fftshift(torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1))), dim=-2)


@pytest.mark.parametrize("box", [39, 40])
@pytest.mark.parametrize("n", [16, 30])
def test_crops_keep_the_low_frequencies(box, n):
    """The crop's transform is the image's inside radius n / 2, about the origin of either."""
    images = torch.randn(3, box, box, generator=torch.Generator().manual_seed(0))
    cropped = crop_images(_half_transform(images), n)
    assert cropped.shape == (3, n, n)
    before = fft_centred(images.to(torch.complex64), dims=(-2, -1))
    after = fft_centred(cropped.to(torch.complex64), dims=(-2, -1))
    r = n // 2 - 1
    inner = after[:, n // 2 - r : n // 2 + r + 1, n // 2 - r : n // 2 + r + 1]
    expected = before[:, box // 2 - r : box // 2 + r + 1, box // 2 - r : box // 2 + r + 1]
    torch.testing.assert_close(inner, expected, rtol=1e-4, atol=1e-3)


def test_support_mask_is_a_soft_ball():
    """1 inside, 0 outside, falling with the distance from voxel n // 2."""
    mask = support_mask(24, 7.0)
    assert float(mask[12, 12, 12]) == 1
    assert float(mask[12, 12, 12 + 5]) == 1
    assert float(mask[12, 12, 12 + 9]) == 0
    assert bool((mask[12, 12, 12:].diff() <= 0).all())
    torch.testing.assert_close(mask, mask.transpose(0, 2))


def test_astigmatism_is_ignored_only_where_it_is_small():
    """0 orders without CTF or without astigmatism; more with radius and with astigmatism; never above 4."""
    assert astigmatic_orders(None, 20, box=128, pixel_size_A=4.0) == 0
    ctf = CTF.uniform(10, defocus_A=20000.0)
    assert astigmatic_orders(ctf, 60, box=128, pixel_size_A=4.0) == 0
    orders = []
    for spread in (100.0, 1000.0, 10000.0):
        split = CTF(**(vars(ctf) | {"defocus_u_A": ctf.defocus_u_A + spread}))
        orders.append([astigmatic_orders(split, r, box=128, pixel_size_A=4.0) for r in (5, 20, 60)])
    assert all(row == sorted(row) for row in orders)
    assert [row[2] for row in orders] == sorted(row[2] for row in orders)
    assert orders[0][0] == 0
    assert orders[2][2] == 4


def _stack(box, *, sigma, n=200, scale=1.0, offset=0.0):
    """Projections of blobs within 0.25 box at random poses, white noise of deviation sigma."""
    blobs = GaussianBlobs.random(14, radius_px=0.25 * box, sigma_px=1.5, seed=2)
    rotation = uniform_rotations(n, seed=3)
    images = blobs.images(box, rotation).float() * 20
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    images = scale * (images + sigma * noise) + offset
    return ParticleStack(
        images=MemoryImages(images), pixel_size_A=3.0, ids=np.arange(n).astype(str)
    ), rotation


@pytest.mark.parametrize("box", [47, 48])
def test_noise_and_size_are_measured(box):
    """White noise: flat noise power of the leveled images within 10 %; radius near that of the particle."""
    stack, _ = _stack(box, sigma=4.0, scale=3.0, offset=100.0)
    observed = observe(stack, generator=torch.Generator().manual_seed(0))
    assert observed.scale_each
    images = observed.images(torch.arange(20))
    background = images[:, observed.background]
    assert float(background.mean(1).abs().max()) < 1e-4
    torch.testing.assert_close(background.std(1), torch.ones(20), rtol=1e-3, atol=0)
    expected = float(box**2)
    shells = observed.noise_power[3 : box // 2 - 1]
    assert float((shells / expected - 1).abs().max()) < 0.1
    assert 0.2 * box < observed.particle_radius_px < 0.35 * box


@pytest.mark.parametrize("box", [63, 64])
def test_round_particles_are_measured_among_neighbours(box):
    """Rim and shifts of a hollow ball whose box is full of other ones, where the variance over images finds no rim."""
    radius, sd, n = 0.2 * box, 1.5, 300
    draw = torch.Generator().manual_seed(4)
    axis = (torch.arange(box) - box // 2).float()
    shift = sd * torch.randn(n, 2, generator=draw)

    def shells(centre):
        x, y = axis - centre[:, :1], axis - centre[:, 1:]
        square = y.square()[:, :, None] + x.square()[:, None]
        outer = (radius**2 - square).clamp_min(0).sqrt()
        return outer - ((0.6 * radius) ** 2 - square).clamp_min(0).sqrt()

    images = shells(shift)
    for turn in 2 * math.pi * (torch.arange(5) / 5 + torch.rand(n, 1, generator=draw)).T:
        away = 2.1 * radius * (1 + 0.3 * torch.rand(n, 1, generator=draw))
        images += shells(away * torch.stack((turn.cos(), turn.sin()), 1))
    images += 0.5 * images.std() * torch.randn(images.shape, generator=draw)
    images -= images.mean((1, 2), keepdim=True)
    measured = mean_image_radius_px(images, None)
    assert 1.0 < measured / radius < 1.35
    assert particle_radius_px(images, None) > 1.35 * radius
    assert mean_image_shift_sd_px(images, None) == pytest.approx(sd, rel=0.25)


def test_noise_free_images_are_not_scaled_one_by_one():
    """Without noise the background holds next to nothing: dividing by it would scale images by chance."""
    stack, _ = _stack(48, sigma=0.0)
    observed = observe(stack, generator=torch.Generator().manual_seed(0))
    assert not observed.scale_each


def test_dark_particles_are_turned_light():
    """sign -1 multiplies the leveled images by -1."""
    stack, _ = _stack(32, sigma=2.0, n=60)
    dark = ParticleStack(
        images=MemoryImages(-stack.images[torch.arange(60)]), pixel_size_A=3.0, ids=stack.ids
    )
    g = torch.Generator()
    light = observe(stack, generator=g.manual_seed(0)).images(torch.arange(5))
    turned = observe(dark, sign=-1.0, generator=g.manual_seed(0)).images(torch.arange(5))
    torch.testing.assert_close(turned, light)


def test_transforms_are_about_the_middle_pixel():
    """Unnormalised, rows from -box // 2 upwards, for odd and even boxes."""
    for box in (31, 32):
        stack, _ = _stack(box, sigma=1.0, n=60)
        observed = observe(stack, generator=torch.Generator().manual_seed(0))
        rows = torch.arange(3)
        full = fft_centred(observed.images(rows).to(torch.complex64), dims=(-2, -1))
        found = observed.transforms(rows)
        torch.testing.assert_close(
            found[:, :, : box // 2], full[:, :, box // 2 : box // 2 * 2], rtol=1e-3, atol=1e-2
        )


def _search_setup():
    stack, rotation = _stack(48, sigma=0.5, n=60)
    observed = observe(stack, generator=torch.Generator().manual_seed(0))
    small = crop_small(observed, torch.arange(60), 30, ALONE)
    lattice = Lattice(30)
    centres = GaussianBlobs.random(14, radius_px=0.25 * 48, sigma_px=1.5, seed=2)
    blobs = GaussianBlobs(centres.centre_px * 30 / 48, centres.weight, 1.5 * 30 / 48)
    scale = 20 / float(stack.images[torch.arange(60)][:, observed.background].std(1).mean())
    half = lattice.to_half(blobs.values(30).float() * scale)
    return observed, small, lattice, half, rotation


def test_search_finds_true_poses_on_the_grid():
    """Against the true map most images choose a pose within two cells of the truth, and the shift 0."""
    observed, small, _, half, rotation = _search_setup()
    level = level_for(10, observed.particle_radius_px, box=48)
    view = make_view(
        half,
        level,
        healpix_directions(level.order),
        n=30,
        box=48,
        reach_px=2.0,
        shift_sd_px=2.0,
        ctf=None,
        pixel_size_A=3.0,
    )
    found, _ = search_images(view, small.rings(torch.arange(60), view.grid, view.kernel))
    turned, shift = poses_of(view, found.best)
    error = geodesic_angle(turned.double(), rotation).rad2deg()
    spacing = 58.6 / 2**level.order
    assert float((error < 1.5 * spacing).float().mean()) > 0.9
    assert float(shift.norm(dim=1).median()) == 0


def test_flat_pose_indices_name_their_template():
    """poses_of((psi, shift, view)) is the pose whose slice is that view's template turned by psi."""
    _, _, _, half, _ = _search_setup()
    level = level_for(8, 10.0, box=48)
    view = make_view(
        half,
        level,
        healpix_directions(1),
        n=30,
        box=48,
        reach_px=2.0,
        shift_sd_px=2.0,
        ctf=None,
        pixel_size_A=3.0,
    )
    s, v = view.plan.n_shifts, view.templates.n_views
    psi, shift, direction = 7, 3, 31
    rotation, shift_px = poses_of(view, torch.tensor([(psi * s + shift) * v + direction]))
    assert torch.equal(shift_px[0], view.shifts_px[shift])
    points = view.grid.points().reshape(-1, 2)
    angle = psi * 2 * math.pi / level.n_psi
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    own, base = rotation[0], view.rotations[direction]
    # T(R_psi k) read at the turned points is the slice of the turned pose read at the points themselves.
    turned = points @ turn
    here = gather(half, 2 * (points[:, :1] * own[0] + points[:, 1:] * own[1]))
    there = gather(half, 2 * (turned[:, :1] * base[0] + turned[:, 1:] * base[1]))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3 * float(here.abs().max()))


def test_random_directions_cover_the_asymmetric_unit():
    """All of the grid for C1; near 1 / g of it for a group of g, other ones for every generator state."""
    from cryorbit.geometry.symmetry import point_group

    g = torch.Generator().manual_seed(0)
    every = random_directions(2, torch.eye(3, dtype=torch.float64)[None], g)
    assert len(every) == 192
    again = random_directions(2, torch.eye(3, dtype=torch.float64)[None], g)
    assert not torch.equal(every, again)
    part = random_directions(3, point_group("D2").double(), g)
    assert abs(len(part) / 768 - 0.25) < 0.05


def test_every_pass_shows_every_image_once():
    """Batches of one pass are disjoint and cover the stack; the next pass has another order."""
    stack, _ = _stack(32, sigma=3.0, n=60)
    observed = observe(stack, generator=torch.Generator().manual_seed(0))
    small = crop_small(observed, torch.arange(60), 24, ALONE)
    stage = CoarseStage(small, _plan(batch=15), torch.eye(3)[None], seed=0, team=ALONE)
    seen = []
    for batch in range(8):
        stage.batch = batch
        seen.append(stage._images_of_batch())
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(60))
    assert not torch.equal(first, second)


def test_stages_continue_from_their_state():
    """Three batches, state copied into a new stage, three more: the bits of six batches in a row."""
    stack, _ = _stack(32, sigma=3.0, n=60)
    observed = observe(stack, generator=torch.Generator().manual_seed(0))
    small = crop_small(observed, torch.arange(60), 24, ALONE)

    def stage():
        return CoarseStage(small, _plan(ramp=6, hold=0, batch=15), torch.eye(3)[None], seed=0, team=ALONE)

    whole, first, second = stage(), stage(), stage()
    whole.begin()
    first.begin()
    for _ in range(3):
        first.step()
    second.restore(first.state())
    while not whole.done:
        whole.step()
    while not second.done:
        second.step()
    assert torch.equal(whole.best.map, second.best.map)
    assert whole.best.log_evidence == second.best.log_evidence
    assert whole.image_visits == second.image_visits
