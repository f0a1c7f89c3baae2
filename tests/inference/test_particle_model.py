"""What refinement measures of each particle, against stacks where it is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from cryorbit.data import CTF
from cryorbit.data.particles import MemoryImages
from cryorbit.inference.defocus import defocus_change
from cryorbit.inference.engine import workers
from cryorbit.inference.half_maps import HalfMaps
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import observe
from cryorbit.inference.particle_model import LEAST_OF_GROUP, ParticleModel
from cryorbit.inference.rounds import PoseTable, refine_block
from cryorbit.physics.transfer import ctf_values
from physics_models import varied_ctf
from posed_stacks import PosedStack, posed_stack

N = 400
HALF = torch.arange(N) % 2
INTERPOLATED_A = 5.0
"""The top between trial values 60 A apart, by a parabola through three of them; a wrong voltage gives 12 % of 250 A."""
SAMPLING = 0.06
"""Relative: 200 images of a shell of ten coefficients and more tell a mean power to 2 %; three times that."""


def maps_of(s: PosedStack, scale: float = 1.0) -> HalfMaps:
    half = s.half() * scale
    values = torch.zeros(2, 2, 2)
    return HalfMaps(Lattice(s.box), (half, half), (values, values), (values, values), torch.ones(3))


def table_of(s: PosedStack) -> PoseTable:
    poses = PoseTable.empty(N)
    poses.rotation, poses.shift_px = s.rotation.clone(), s.shift_px.clone()
    return poses


@pytest.fixture(scope="module")
def noisy() -> PosedStack:
    return posed_stack(N, noise=1.0, ctf=True, seed=3)


def observed_as(s: PosedStack, images: torch.Tensor, **changes):
    stack = replace(s.observed.stack, images=MemoryImages(images), **changes)
    seen = observe(stack, particle_diameter_A=120.0, generator=torch.Generator().manual_seed(0))
    # Grey values as they are: the truth is known on their scale.
    rows = torch.arange(N)
    power = (images.std() / seen.images(rows).std()).square()
    as_they_are = {"noise_power": seen.noise_power * power, "total_power": seen.total_power * power}
    return replace(seen, scale_each=False, **as_they_are)


def test_each_optics_group_gets_its_own_noise_in_each_half(noisy):
    images = noisy.observed.stack.images[torch.arange(N)]
    louder = torch.arange(N) >= N // 2
    sigma = torch.where(louder, 3.0, 1.0) * images.std()
    g = torch.Generator().manual_seed(5)
    images = images + sigma[:, None, None] * torch.randn(images.shape, generator=g)
    observed = observed_as(noisy, images, optics_group=louder.long() + 7)
    model = ParticleModel.of(observed, HALF)
    with workers(1) as team:
        model = model.with_noise(table_of(noisy), maps_of(noisy), radius=14, team=team)
    first = noisy.observed.stack.images[torch.arange(N)]
    own = (first - _clean(noisy)).square().mean() * noisy.box**2
    for group, factor in ((0, 1.0), (1, 9.0)):
        wanted = own + factor * float(first.var()) * noisy.box**2
        for half in (0, 1):
            measured = model.group_noise[half, group, 3:13]
            assert (measured / wanted - 1).abs().mean() < SAMPLING


def _clean(s: PosedStack) -> torch.Tensor:
    return posed_stack(N, noise=0.0, ctf=True, seed=3).observed.stack.images[torch.arange(N)]


def test_scales_are_found_where_they_differ_and_stay_1_where_they_do_not(noisy):
    images = noisy.observed.stack.images[torch.arange(N)]
    g = torch.Generator().manual_seed(6)
    true = 1 + 0.3 * torch.randn(N, generator=g).clamp(-2, 2)
    clean = _clean(noisy)
    with workers(1) as team:

        def scales(particles: torch.Tensor) -> torch.Tensor:
            model = ParticleModel.of(observed_as(noisy, particles), HALF)
            poses = table_of(noisy)
            maps = maps_of(noisy)
            rows = torch.arange(N)
            refine_block(model, poses, rows, HALF, maps, radius=12, iterations=0, shift_sd_px=3.0, team=team)
            return model.with_scales(poses).scale

        differing = scales(images + (true - 1)[:, None, None] * clean)
        equal = scales(images)
    assert torch.corrcoef(torch.stack((differing, true)))[0, 1] > 0.9
    assert equal.std() < 0.3 * differing.std()


def test_scales_of_too_few_images_stay_as_they_are(noisy):
    """A half of fewer images than tell a spread keeps its scales; the other half has its own measured."""
    half = (torch.arange(N) >= LEAST_OF_GROUP - 1).long()
    model = ParticleModel.of(observed_as(noisy, noisy.observed.stack.images[torch.arange(N)]), half)
    poses = table_of(noisy)
    poses.explained = 1 + 2 * torch.rand(N, generator=torch.Generator().manual_seed(0))
    poses.deviation = (poses.explained - 1) * 100.0  # next to no noise: all of the scatter is true
    scale = model.with_scales(poses).scale
    assert torch.equal(scale[half == 0], model.scale[half == 0])
    assert scale[half == 1].std() > 0.1


def test_defocus_is_found_and_agrees_with_the_likelihood_summed_directly():
    """The ring sums give the highest likelihood among the trial values, and that is near the true change."""
    case = defocus_case(voltage_kV=torch.full((12,), 300.0))
    images, slices, noise, frequency = case.images, case.slices, case.noise, case.frequency
    true, moved = case.true, case.moved
    found = defocus_change(images, slices, case.ctf, noise, frequency, sd_A=300.0)

    def likelihood(change):
        misfit = (images - slices * ctf_values(moved(change), frequency)).abs().square() / noise
        return -misfit.sum(1) - 0.5 * (change / 300.0).square()

    at_top = likelihood(found)
    for other in (true, found + 15, found - 15, torch.zeros_like(found)):
        assert bool((at_top >= likelihood(other) - 0.2).all())
    assert (found - true).abs().median() < 30


@dataclass
class DefocusCase:
    """Transforms of images whose defocus is off by `true`, angstrom."""

    ctf: CTF
    true: torch.Tensor
    slices: torch.Tensor
    frequency: torch.Tensor
    sigma: float

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(1)
        values = self.slices * ctf_values(self.moved(self.true), self.frequency)
        white = torch.view_as_complex(torch.randn(*values.shape, 2, generator=g))
        self.images = values + self.sigma * white
        self.noise = torch.full(values.shape, 2 * self.sigma**2)

    def moved(self, change: torch.Tensor) -> CTF:
        u, v = self.ctf.defocus_u_A + change, self.ctf.defocus_v_A + change
        return replace(self.ctf, defocus_u_A=u, defocus_v_A=v)


def defocus_case(*, voltage_kV: torch.Tensor, sigma: float = 0.3) -> DefocusCase:
    g = torch.Generator().manual_seed(0)
    n, box, pixel = len(voltage_kV), 64, 2.0
    k = torch.arange(-24, 25.0)
    points = torch.stack(torch.meshgrid(k, k, indexing="xy"), -1).reshape(-1, 2)
    points = points[(points[:, 0] > 0) & (points.norm(dim=1) < 24)]
    ctf = replace(varied_ctf(n), voltage_kV=voltage_kV.to(varied_ctf(n).voltage_kV))
    true = 250 * torch.randn(n, generator=g)
    slices = torch.view_as_complex(torch.randn(n, len(points), 2, generator=g))
    slices = slices * torch.exp(-points.norm(dim=1) / 30)
    return DefocusCase(ctf, true, slices, points / (box * pixel), sigma)


def test_the_prior_of_the_defocus_stays_where_the_file_was():
    """Images too noisy to say much: asked again from what was found, the defocus moves no further."""
    case = defocus_case(voltage_kV=torch.full((40,), 300.0), sigma=6.0)

    def change(found: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        ctf = case.moved(found)
        return defocus_change(
            case.images, case.slices, ctf, case.noise, case.frequency, sd_A=100.0, moved_A=before
        )

    first = change(torch.zeros(40), None)
    again, drifting = change(first, first), change(first, None)
    assert again.abs().median() < 0.1 * drifting.abs().median()


def test_voltages_may_differ_within_a_stack():
    """The change found of a particle is the same whatever the voltage of the others."""
    mixed = defocus_case(voltage_kV=torch.tensor([200.0, 300.0] * 6))
    at = (mixed.images, mixed.slices, mixed.ctf, mixed.noise, mixed.frequency)
    together = defocus_change(*at, sd_A=300.0)
    for row in range(12):
        one = torch.tensor([row])
        images, slices, noise = mixed.images[one], mixed.slices[one], mixed.noise[one]
        found = defocus_change(images, slices, mixed.ctf[one], noise, mixed.frequency, sd_A=300.0)
        assert float(found - together[row]) == pytest.approx(0, abs=INTERPOLATED_A)
