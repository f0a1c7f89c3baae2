from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryorbit.data import CTF, Gaussians, Pose
from cryorbit.errors import BadInput
from cryorbit.physics.formation import transfer_of
from cryorbit.physics.project import images_of, project, shift_phase, transforms_of
from cryorbit.physics.splat import gaussians_to_map, map_transform, splat_images, splat_transforms
from cryorbit.physics.splat_exact import exact_map_transform, exact_transforms
from cryorbit.physics.splat_kernel import kernel_library
from cryorbit.physics.splat_torch import Cloud, gather, splat
from laws import ROUND_OFF
from physics_models import uniform_rotations, varied_ctf

RENDER = 1e-4  # relative, all frequencies below Nyquist; aliasing 2.5e-5 by design, measured 3e-5 at most
GRADIENT = 3e-4  # relative, of a smooth scalar; derivatives weigh the cut tails more: measured 1e-4
SLICED = 3e-2  # trilinear slices of a map, its corners cut; physics.project states 2e-2 for 0.8 of the box
P = 1.3
BACKENDS = ["torch", "compiled"]


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    if request.param == "compiled" and kernel_library() is None:
        pytest.skip("no C++ compiler on this machine")
    return request.param


def cloud_of(n: int, box: int, *, sigma_px: float, isotropic: bool = True, seed: int = 0) -> Gaussians:
    """Gaussians anywhere in 0.9 of the box, so that many reach over its edge."""
    g = torch.Generator().manual_seed(seed)
    position = (torch.rand(n, 3, generator=g, dtype=torch.float64) - 0.5) * 0.9 * box * P
    amplitude = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
    width = sigma_px * P * (1 + 0.3 * torch.rand(n, generator=g, dtype=torch.float64))
    if not isotropic:
        q = uniform_rotations(n, seed=seed)
        width = q * (width[:, None] * torch.tensor([1.0, 1.5, 2.2], dtype=torch.float64))[:, None]
    return Gaussians(position, amplitude, width)


def poses(n: int) -> Pose:
    g = torch.Generator().manual_seed(4)
    return Pose(uniform_rotations(n), 3 * torch.randn(n, 2, generator=g, dtype=torch.float64))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("sigma_px", [0.1, 0.45, 0.7, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("box", [32, 33])
def test_images_are_the_exact_fourier_sum(box, sigma_px, isotropic, backend):
    """Every frequency below Nyquist, in single and double precision."""
    cloud, pose = cloud_of(40, box, sigma_px=sigma_px, isotropic=isotropic), poses(2)
    exact = exact_transforms(cloud, pose, box=box, pixel_size_A=P)
    frame = {"box": box, "pixel_size_A": P, "backend": backend}
    assert relative(splat_transforms(cloud, pose, **frame), exact) < RENDER
    single = splat_transforms(
        cloud.to(torch.zeros(1)), Pose(pose.rotation.float(), pose.shift_A.float()), **frame
    )
    assert single.dtype == torch.complex64
    assert relative(single, exact) < RENDER


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("box", [16, 17])
def test_maps_are_the_exact_fourier_sum(box, isotropic, backend):
    for sigma_px in (0.5, 1.2):
        cloud = cloud_of(20, box, sigma_px=sigma_px, isotropic=isotropic)
        exact = exact_map_transform(cloud, box=box, pixel_size_A=P)
        found = map_transform(cloud, box=box, pixel_size_A=P, backend=backend)[0]
        assert relative(found, exact) < RENDER


def leaves(cloud: Gaussians, pose: Pose) -> tuple[Tensor, ...]:
    fields = (cloud.position_A, cloud.amplitude, cloud.width_A, pose.rotation, pose.shift_A)
    return tuple(t.detach().clone().requires_grad_() for t in fields)


@pytest.mark.parametrize("isotropic", [True, False])
def test_gradients_are_those_of_the_exact_sum(isotropic, backend):
    """Positions, amplitudes, widths, rotations and shifts, against automatic differentiation of the twin."""
    box, sigma_px = 20, 0.8
    inputs = leaves(cloud_of(12, box, sigma_px=sigma_px, isotropic=isotropic), poses(3))
    g = torch.Generator().manual_seed(7)
    wanted = torch.randn(3, box, box // 2 + 1, 2, generator=g, dtype=torch.float64)
    wanted = torch.view_as_complex(wanted)

    def loss(render, **options: str) -> Tensor:
        position, amplitude, width, rotation, shift = inputs
        cloud, pose = Gaussians(position, amplitude, width), Pose(rotation, shift)
        return (render(cloud, pose, box=box, pixel_size_A=P, **options) - wanted).abs().square().sum()

    ours = torch.autograd.grad(loss(splat_transforms, backend=backend), inputs)
    exact = torch.autograd.grad(loss(exact_transforms), inputs)
    for mine, theirs, at in zip(ours, exact, inputs, strict=True):
        if at is inputs[3]:
            # A matrix that is no rotation would stretch balls in the twin: only turns are compared.
            mine, theirs = (g @ at.detach().mT - at.detach() @ g.mT for g in (mine, theirs))
        assert relative(mine, theirs) < GRADIENT


@pytest.mark.parametrize("isotropic", [True, False])
def test_backward_is_the_derivative_of_forward(isotropic, backend):
    """Finite differences in double precision, CTF, conformations and shared widths included."""
    cloud, pose, box = cloud_of(3, 8, sigma_px=0.6, isotropic=isotropic), poses(2), 8
    cloud = replace(cloud, position_A=torch.stack((cloud.position_A, 0.5 * cloud.position_A)))
    ctf = varied_ctf(2)

    def render(*fields: Tensor) -> Tensor:
        position, amplitude, width, rotation, shift = fields
        moved = Gaussians(position, amplitude, width)
        return splat_transforms(moved, Pose(rotation, shift), ctf, box=box, pixel_size_A=P, backend=backend)

    assert torch.autograd.gradcheck(render, leaves(cloud, pose), atol=1e-6, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("isotropic", [True, False])
def test_backward_of_maps_is_the_derivative_of_forward(isotropic, backend):
    cloud = cloud_of(2, 6, sigma_px=0.6, isotropic=isotropic)

    def render(*fields: Tensor) -> Tensor:
        return map_transform(Gaussians(*fields), box=6, pixel_size_A=P, backend=backend)

    assert torch.autograd.gradcheck(render, leaves(cloud, poses(1))[:3], atol=1e-6, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_kernel_equals_its_torch_twin(dim, dtype, isotropic):
    """Sums and gradients, patches across the edges and wider than the grid among them."""
    if kernel_library() is None:
        pytest.skip("no C++ compiler on this machine")
    from cryorbit.physics.splat_kernel import compiled_gather, compiled_splat

    g = torch.Generator().manual_seed(2)
    n, size = 30, 14
    centre = (30 * torch.rand(2, n, dim, generator=g) - 8).to(dtype)
    sigma = (0.8 + torch.rand(1, n, generator=g)).to(dtype)
    precision = 0.5 / sigma**2
    if not isotropic:
        skew = torch.eye(dim) + 0.12 * torch.randn(2, n, dim, dim, generator=g)
        precision = (skew @ skew.mT).to(dtype) / sigma[..., None, None] ** 2
    # Seven deviations: what one of them sums further out than the other is too small to see.
    narrow = torch.linalg.eigvalsh(precision)[..., :1] if not isotropic else 2 * precision[..., None]
    cloud = Cloud(
        centre, torch.rand(1, n, generator=g).to(dtype), precision, (7 / narrow.sqrt()).expand(-1, n, dim)
    )
    grid = torch.randn(2, *(size,) * dim, generator=g).to(dtype)
    tolerance = 1e-9 if dtype == torch.float64 else ROUND_OFF[dtype]
    assert relative(compiled_splat(cloud, size), splat(cloud, size)) < tolerance
    for mine, theirs in zip(compiled_gather(cloud, grid), gather(cloud, grid), strict=True):
        assert relative(mine, theirs) < 10 * tolerance


def test_images_dealt_out_to_threads_are_the_same():
    """The number of threads decides who draws an image, not what is drawn."""
    cloud, pose = cloud_of(20, 16, sigma_px=0.8), poses(5)
    threads, drawn = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            drawn.append(splat_transforms(cloud, pose, box=16, pixel_size_A=P))
    finally:
        torch.set_num_threads(threads)
    assert relative(drawn[1], drawn[0]) < ROUND_OFF[torch.float64]


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("box", [24, 25])
def test_an_image_is_the_projection_of_the_map(box, isotropic):
    """Along the axes sums over voxels, both band-limited; elsewhere the slices of `project`, to what those state."""
    cloud = cloud_of(30, box, sigma_px=1.2, isotropic=isotropic)
    cloud = replace(cloud, position_A=0.5 * cloud.position_A)
    volume = gaussians_to_map(cloud, box=box, pixel_size_A=P)
    turn = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)  # x, y, z from y, z, x
    still = torch.zeros(1, 2, dtype=torch.float64)
    along_x = splat_images(cloud, Pose(turn[None], still), box=box, pixel_size_A=P)[0]
    assert relative(along_x, volume.values.sum(2)) < 2 * RENDER
    along_z = splat_images(
        cloud, Pose(torch.eye(3, dtype=torch.float64)[None], still), box=box, pixel_size_A=P
    )
    assert relative(along_z[0], volume.values.sum(0)) < 2 * RENDER
    pose = poses(3)
    assert relative(project(volume, pose), splat_images(cloud, pose, box=box, pixel_size_A=P)) < SLICED


@pytest.mark.parametrize("isotropic", [True, False])
def test_moving_the_molecule_is_moving_the_pose(isotropic):
    """R (Q x + t) + s = (R Q) x + (R t + s), to round-off: the sum is made of the same centres."""
    cloud, pose = cloud_of(30, 24, sigma_px=1.0, isotropic=isotropic), poses(2)
    q, t = uniform_rotations(1, seed=9)[0], torch.tensor([2.0, -3.0, 5.0], dtype=torch.float64)
    there = splat_transforms(cloud.moved(q, t), pose, box=24, pixel_size_A=P)
    same = Pose(pose.rotation @ q, pose.shift_A + (pose.rotation @ t)[:, :2])
    assert relative(splat_transforms(cloud, same, box=24, pixel_size_A=P), there) < 1e-10


@pytest.mark.parametrize("box", [24, 25])
def test_the_sum_of_an_image_is_the_sum_of_the_amplitudes(box):
    cloud, total = cloud_of(30, box, sigma_px=0.5), 0.0
    total = float(cloud.amplitude.sum())
    image = splat_images(cloud, poses(2), box=box, pixel_size_A=P)
    torch.testing.assert_close(
        image.sum((1, 2)) * P**3, torch.full((2,), total).double(), rtol=RENDER, atol=0
    )
    volume = gaussians_to_map(cloud, box=box, pixel_size_A=P)
    assert abs(float(volume.values.sum()) * P**3 / total - 1) < RENDER


@pytest.mark.parametrize("box", [24, 25])
def test_a_shift_by_part_of_a_pixel_is_a_phase(box):
    """The shift theorem for any shift: nothing of the pixels shows."""
    cloud, pose = cloud_of(30, box, sigma_px=0.45), poses(2)
    still = replace(pose, shift_A=torch.zeros_like(pose.shift_A))
    moved = splat_transforms(cloud, pose, box=box, pixel_size_A=P)
    phase = shift_phase(pose.shift_A, box, pixel_size_A=P)
    assert relative(moved, splat_transforms(cloud, still, box=box, pixel_size_A=P) * phase) < 2 * RENDER


@pytest.mark.parametrize("box", [24, 25])
def test_transforms_are_those_of_real_images(box):
    """Friedel symmetry: back and forth loses nothing, column 0 and Nyquist included."""
    plane = splat_transforms(cloud_of(30, box, sigma_px=0.6), poses(2), box=box, pixel_size_A=P)
    assert relative(transforms_of(images_of(plane, box)), plane) < ROUND_OFF[torch.float64]


def test_the_ctf_multiplies_the_transform():
    """Odd aberrations and magnification too: a stretched image of a ball is not round."""
    cloud, pose, ctf = cloud_of(20, 24, sigma_px=1.0), poses(2), varied_ctf(2)
    plain = splat_transforms(cloud, pose, box=24, pixel_size_A=P)
    factor = transfer_of(torch.zeros_like(pose.shift_A), ctf, 24, pixel_size_A=P)
    assert factor is not None
    assert relative(splat_transforms(cloud, pose, ctf, box=24, pixel_size_A=P), plain * factor) < 1e-6
    stretch = torch.tensor([[1.05, 0.02], [-0.01, 0.96]]).expand(2, 2, 2)
    ctf = replace(ctf, magnification=stretch, beam_tilt_mrad=torch.tensor([[0.3, -0.2], [0.0, 0.5]]))
    exact = exact_transforms(cloud, pose, ctf, box=24, pixel_size_A=P)
    assert relative(splat_transforms(cloud, pose, ctf, box=24, pixel_size_A=P), exact) < RENDER


def test_each_image_can_have_its_own_conformation():
    """Rendering conformations together is rendering each alone."""
    cloud, pose = cloud_of(10, 16, sigma_px=1.0), poses(3)
    scale = torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64)
    many = Gaussians(
        scale[:, None, None] * cloud.position_A, scale[:, None] * cloud.amplitude, cloud.width_A.expand(3, -1)
    )
    together = splat_transforms(many, pose, box=16, pixel_size_A=P)
    for i in range(3):
        one = Gaussians(many.position_A[i], many.amplitude[i], cloud.width_A)
        alone = splat_transforms(one, pose[i : i + 1], box=16, pixel_size_A=P)
        assert relative(together[i : i + 1], alone) < ROUND_OFF[torch.float64]


def test_no_gaussians_are_an_empty_image():
    nothing = Gaussians(torch.zeros(0, 3), torch.zeros(0), torch.zeros(0))
    assert not splat_images(nothing, Pose.identity(2), box=9, pixel_size_A=P).any()


def test_what_does_not_fit_together_is_refused():
    cloud, pose = cloud_of(4, 16, sigma_px=1.0), poses(2)
    many = replace(cloud, amplitude=cloud.amplitude.expand(3, -1))
    with pytest.raises(BadInput, match="2 poses but 3 conformations"):
        splat_transforms(many, pose, box=16, pixel_size_A=P)
    with pytest.raises(BadInput, match="3 CTF rows"):
        splat_transforms(cloud, pose, CTF.uniform(3, defocus_A=1e4), box=16, pixel_size_A=P)
    wide = replace(cloud, width_A=30 * cloud.width_A)
    with pytest.raises(BadInput, match="backend 'torch'"):
        splat_transforms(wide, pose, box=16, pixel_size_A=P, backend="compiled")
    exact = exact_transforms(wide, pose, box=16, pixel_size_A=P)
    assert relative(splat_transforms(wide, pose, box=16, pixel_size_A=P), exact) < RENDER
