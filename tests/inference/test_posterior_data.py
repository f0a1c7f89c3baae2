"""The likelihood as two volumes against sums over images, and what is solved and drawn with it against dense algebra."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from cryorbit.data import CTF, ParticleStack, Pose
from cryorbit.data.particles import MemoryImages
from cryorbit.errors import BadInput
from cryorbit.inference.collapse import collapse, group_noise
from cryorbit.inference.gaussian_solves import draw_precision
from cryorbit.inference.image_sums import ImageSums
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.physics.formation import transfer_of
from cryorbit.physics.fourier_sums import transform_at, wave_sums
from cryorbit.physics.lattice import half_plane
from cryorbit.physics.noise import spread_shells
from cryorbit.physics.project import images_of, transforms_of
from physics_models import GaussianBlobs, uniform_rotations, varied_ctf

PIXEL_A = 3.0
GRIDDED = {4: 1e-3, 8: 1e-6}
"""Relative error of the gradient for kernels of 4 and 8 points; measured 4e-4 and 6e-8."""
SOLVED = 1e-6
"""Float64, conjugate gradients and Lanczos to a tolerance of 1e-9."""


class Images:
    """Simulated images of blobs, formed by exact slices, with all that the likelihood needs."""

    def __init__(self, n: int, box: int, *, ctf: bool = True, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        shift = PIXEL_A * torch.randn(n, 2, generator=g, dtype=torch.float64)
        self.box, self.pose = box, Pose(uniform_rotations(n, seed=seed + 1), shift)
        self.ctf: CTF | None = varied_ctf(n) if ctf else None
        self.truth = GaussianBlobs.random(20, radius_px=0.28 * box, sigma_px=1.2).values(box)
        self.group = torch.arange(n) % 2
        self.noise = box**2 * 1e-3 * (1 + torch.rand(2, box // 2 + 1, generator=g, dtype=torch.float64))
        self.points = half_plane(box, step=1, radius=(box - 1) / 2, dtype=torch.float64)
        transfer = transfer_of(shift, self.ctf, box, pixel_size_A=PIXEL_A)
        assert transfer is not None
        self.transfer = transfer.flatten(1)[:, self.points.position]
        kx, ky, rotation = self.points.kx[:, None], self.points.ky[:, None], self.pose.rotation
        self.where = kx * rotation[:, None, 0] + ky * rotation[:, None, 1]
        self.share = (
            torch.where(self.points.kx == 0, 1.0, 2.0)
            / spread_shells(self.noise, box).flatten(1)[self.group][:, self.points.position].double()
        )
        plane = torch.zeros(n, box * (box // 2 + 1), dtype=torch.complex128)
        plane[:, self.points.position] = self.model(self.truth)
        clean = images_of(plane.view(n, box, -1), box)
        white = torch.randn(clean.shape, generator=g, dtype=torch.float64)
        power = spread_shells(self.noise, box)[self.group] / box**2
        self.images = clean + torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt(), s=(box, box))

    def model(self, v: Tensor) -> Tensor:
        return self.transfer * transform_at(v, self.where.flatten(0, 1)).view(len(self.pose), -1)

    def residual(self, v: Tensor) -> Tensor:
        return transforms_of(self.images).flatten(1)[:, self.points.position] - self.model(v)

    def gradient(self, v: Tensor) -> Tensor:
        value = (self.share * self.transfer.conj() * self.residual(v)).flatten()
        return wave_sums(self.where.flatten(0, 1), value, box=self.box, edge=self.box)

    def collapsed(self, *, width: int = 10, rows: slice = slice(None)) -> TwoVolumes:
        sums = ImageSums(self.box, pixel_size_A=PIXEL_A, width=width)
        ctf = None if self.ctf is None else self.ctf[rows]
        sums.insert(self.images[rows], self.pose[rows], ctf, noise_power=self.noise[self.group[rows]])
        return sums.finish(dtype=torch.float64)

    def stack(self) -> ParticleStack:
        return ParticleStack(
            images=MemoryImages(self.images.float()),
            pixel_size_A=PIXEL_A,
            ids=np.arange(len(self.pose)).astype(str),
            ctf=self.ctf,
            pose=Pose(self.pose.rotation.float(), self.pose.shift_A.float()),
            optics_group=self.group + 3,
        )


@lru_cache
def example(n: int, box: int) -> Images:
    return Images(n, box)


def away(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("box", [15, 16])
@pytest.mark.parametrize("width", GRIDDED)
def test_gradient_and_misfit_are_those_of_sums_over_200_images(box, width):
    """With CTF, shifts and a noise spectrum per group, at a map that is not the truth."""
    images = example(200, box)
    data = images.collapsed(width=width)
    v = 0.7 * images.truth.roll(1, 0)
    misfit = float((images.share * images.residual(v).abs().square()).sum())
    assert away(data.gradient(v), images.gradient(v)) < GRIDDED[width]
    assert abs(float(data.chi_square(v)) / misfit - 1) < GRIDDED[width]
    assert away(data.to(dtype=torch.float32).gradient(v.float()), images.gradient(v)) < GRIDDED[width]


@pytest.mark.parametrize("box", [6, 7])
def test_weight_is_the_diagonal_of_the_operator(box):
    """Each entry is <e, W e> for the unit wave e of its frequency, and W is symmetric without negative values."""
    images = Images(5, box)
    data = images.collapsed()
    dense = data.apply(torch.eye(box**3, dtype=torch.float64).view(-1, box, box, box)).view(box**3, -1)
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-7 * float(dense.abs().max()))
    assert float(torch.linalg.eigvalsh(dense).min()) > -1e-6 * float(dense.diagonal().max())
    for index in ((0, 0, 0), (1, 0, 2), (box - 1, 2, 1), (box // 2, box // 2, box // 2)):
        wave = torch.zeros(box, box, box, dtype=torch.complex128)
        wave[index] = box**1.5
        e = torch.fft.ifftn(wave)
        value = sum((p * data.apply(p)).sum() for p in (e.real, e.imag))
        torch.testing.assert_close(data.weight[index], value, rtol=1e-6, atol=1e-6 * float(data.weight.max()))


@pytest.mark.parametrize("box", [6, 7])
@pytest.mark.parametrize("diagonal", [True, False])
def test_proximal_map_and_draws_are_those_of_dense_algebra(box, diagonal):
    """Prox solves (W + I / rho^2) v = B + x / rho^2; draws are white noise times a root of its inverse."""
    data = Images(3, box).collapsed()
    data = data.diagonal() if diagonal else data
    rho = 3 * float(data.weight.mean()) ** -0.5
    eye = torch.eye(box**3, dtype=torch.float64)
    dense = data.apply(eye.view(-1, box, box, box)).view(box**3, -1) + eye / rho**2
    x = torch.randn(2, box, box, box, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * rho
    wanted = torch.linalg.solve(dense, (data.back_projection + x / rho**2).view(2, -1).T).T
    for start in (None, 0.5 * x):
        found = data.prox(x, rho, start=start, tolerance=1e-9, steps=400)
        assert away(found.view(2, -1), wanted) < SOLVED
    scale = (data.weight + 1 / rho**2).rsqrt()
    half = data.filtered(eye.view(-1, box, box, box), scale).flatten(1)
    value, vector = torch.linalg.eigh(half @ dense @ half)
    root = half @ (vector * value.rsqrt()) @ vector.T
    assert away(root @ root.T, torch.linalg.inv(dense)) < SOLVED
    white = torch.randn(3, box, box, box, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    drawn = draw_precision(data, white, 1 / rho**2, tolerance=1e-9, steps=400)
    assert away(drawn.flatten(1), white.flatten(1) @ root.T) < SOLVED


def test_draws_are_about_the_proximal_point():
    """The mean of draws is the proximal map's, to their own scatter."""
    data = Images(3, 6).collapsed()
    rho = 3 * float(data.weight.mean()) ** -0.5
    x = torch.zeros(100, 6, 6, 6, dtype=torch.float64)
    white = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    draws = data.prox(x, rho) + data.deviation(white, rho)
    z = (draws.mean(0) - data.prox(x[0], rho)) / (draws.std(0) / 10)
    assert abs(float(z.square().mean()) - 1) < 0.4  # mean of 216 correlated squares of unit variance


@pytest.mark.parametrize("box", [15, 16])
def test_held_out_residuals_of_the_truth_have_unit_variance(box):
    """Chi-square of images that the map has not seen is their number of values; the gain of the truth is 1."""
    data = example(200, box).collapsed(rows=slice(100, 200))
    truth = example(200, box).truth
    deviation = (2 / data.count) ** 0.5
    assert abs(float(data.chi_square(truth)) / data.count - 1) < 4 * deviation
    assert abs(float(data.gain(0.5 * truth)) - 2) < 8 * float((truth * data.apply(truth)).sum()) ** -0.5


def test_what_samplers_see_does_not_grow_with_the_images():
    """The same tensors of the same size, whether of 5 images or of 200."""
    few, many = (example(200, 16).collapsed(width=4, rows=slice(0, n)) for n in (5, 200))
    for a, b in zip(vars(few).values(), vars(many).values(), strict=True):
        assert type(a) is type(b)
        if isinstance(a, Tensor):
            assert a.shape == b.shape


def test_scaling_is_a_change_of_unit():
    data = example(200, 15).collapsed()
    v = example(200, 15).truth
    torch.testing.assert_close(data.scaled(3.0).chi_square(v / 3), data.chi_square(v), rtol=1e-9, atol=0)


def test_power_method_bounds_the_operator():
    data = Images(4, 7).collapsed()
    dense = data.apply(torch.eye(343, dtype=torch.float64).view(-1, 7, 7, 7)).view(343, -1)
    largest = float(torch.linalg.eigvalsh(dense).max())
    assert largest <= data.curvature() < 1.1 * largest


def test_a_stack_is_collapsed_block_by_block():
    """Groups find their own spectrum, and two halves add up to the whole."""
    images = example(200, 16)
    whole, wanted = collapse(images.stack(), images.noise, dtype=torch.float64), images.collapsed(width=6)
    assert away(whole.back_projection, wanted.back_projection) < 1e-5  # images in float32
    drawn = collapse(
        replace(images.stack(), pose=None),
        images.noise,
        pose=images.pose,
        read=lambda rows: images.images[rows].float(),
        dtype=torch.float64,
    )
    assert away(drawn.back_projection, whole.back_projection) < 1e-5  # poses in float64 there
    rows = torch.arange(200)
    first, second = (collapse(images.stack(), images.noise, rows=r) for r in (rows[::2], rows[1::2]))
    both = first + second
    assert away(both.weight, wanted.weight) < 1e-5
    assert away(both.back_projection, wanted.back_projection) < 1e-5
    assert first.count == second.count == both.count / 2 == whole.count / 2


def test_noise_is_measured_per_group():
    """White noise of two levels: each group's spectrum is its own, flat within its scatter."""
    g = torch.Generator().manual_seed(0)
    group = torch.arange(400) % 2
    pixels = torch.randn(400, 32, 32, generator=g) * torch.where(group == 0, 1.0, 3.0)[:, None, None]
    stack = ParticleStack(
        images=MemoryImages(pixels),
        pixel_size_A=PIXEL_A,
        ids=np.arange(400).astype(str),
        optics_group=group,
    )
    power = group_noise(stack, radius_px=10) / 32**2
    # 200 images of some 20 independent values per shell.
    torch.testing.assert_close(
        power, torch.tensor([[1.0], [9.0]]).expand_as(power).to(power), rtol=0.15, atol=0
    )


def test_what_does_not_fit_is_refused():
    images = example(200, 16)
    stack = images.stack()
    with pytest.raises(BadInput, match="3 noise spectra for 2 optics groups"):
        collapse(stack, images.noise[[0, 0, 0]])
    with pytest.raises(BadInput, match="no poses"):
        collapse(replace(stack, pose=None), images.noise)
    with pytest.raises(BadInput, match="positive noise powers"):
        collapse(stack, 0 * images.noise)
    with pytest.raises(BadInput, match="empty where there are data"):
        images.collapsed().gain(torch.zeros(16, 16, 16, dtype=torch.float64))
