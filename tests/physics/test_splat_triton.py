"""The Triton kernel against its torch twin: on a CUDA device where there is one, else by Triton's interpreter on the CPU.

The interpreter must be chosen before Triton is imported, so one test runs this file again in a process of its own. It knows
nothing of what the compiler refuses: another test compiles for GPUs that need not be there.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryorbit.data import Gaussians, Pose
from cryorbit.errors import BadInput
from cryorbit.physics import splat_transform
from cryorbit.physics.splat import map_transform, splat_transforms
from cryorbit.physics.splat_torch import Cloud, gather, splat
from cryorbit.physics.splat_triton import MOST_REACH, triton_gather, triton_splat
from laws import ROUND_OFF
from physics_models import uniform_rotations, varied_ctf

CUT = (
    1e-4  # relative; of narrower Gaussians the twin sums more than 4.6 deviations, which have a norm of 1e-5
)
CUT_GRADIENT = 3e-4  # derivatives weigh the cut tails more, as in test_splat.py
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu"] if INTERPRETED else [pytest.param("cuda", marks=[pytest.mark.gpu, GPU])]
TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed (torch's CUDA builds bring it)",
)
on_devices = pytest.mark.parametrize("device", DEVICES)
shapes = pytest.mark.parametrize("isotropic", [True, False])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def cloud_of(dim: int, dtype: torch.dtype, device: str, *, isotropic: bool, reach: float) -> Cloud:
    """Two Gaussians in two images, on and far off the grid; one reach, so that the twin sums the very same pixels."""
    g = torch.Generator().manual_seed(2)
    n = 2
    centre = 40 * torch.rand(2, n, dim, generator=g) - 15
    precision = 0.1 + 0.3 * torch.rand(1, n, generator=g)
    if not isotropic:
        skew = torch.eye(dim) + 0.2 * torch.randn(2, n, dim, dim, generator=g)
        precision = precision[..., None, None] * (skew @ skew.mT)
    # Weights are shared by the images, and so are precisions where they are isotropic.
    fields = (centre, 0.5 + torch.rand(1, n, generator=g), precision, torch.full((1, n, dim), reach))
    return Cloud(*(field.to(device, dtype) for field in fields))


@on_devices
@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("dim", "size", "reach"), [(2, 5, 4.1), (2, 14, 4.0), (2, 33, 8.7), (3, 5, 1.7), (3, 18, 3.4)]
)
def test_sums_and_gradients_are_those_of_the_torch_twin(dim, size, reach, dtype, isotropic, device):
    """Patches across the edges and wider than the grid among them; grids narrower than a tile."""
    cloud = cloud_of(dim, dtype, device, isotropic=isotropic, reach=reach)
    assert relative(triton_splat(cloud, size), splat(cloud, size)) < ROUND_OFF[dtype]
    g = torch.Generator().manual_seed(3)
    grid = torch.randn(2, *(size,) * dim, generator=g).to(device, dtype)
    for mine, theirs in zip(triton_gather(cloud, grid), gather(cloud, grid), strict=True):
        assert mine.shape == theirs.shape
        assert relative(mine, theirs) < ROUND_OFF[dtype]


@on_devices
@shapes
@pytest.mark.parametrize(("dim", "size"), [(2, 13), (2, 18), (3, 9)])
def test_reading_is_the_adjoint_of_drawing(dim, size, isotropic, device):
    """<splat(w), g> = <w, gather(g)>: sums are linear in the weights."""
    cloud = cloud_of(dim, torch.float64, device, isotropic=isotropic, reach=3.1)
    grid = torch.randn(2, *(size,) * dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(
        device
    )
    drawn = (triton_splat(cloud, size) * grid).sum()
    read = (triton_gather(cloud, grid)[1] * cloud.weight).sum()
    torch.testing.assert_close(drawn, read, rtol=ROUND_OFF[torch.float64], atol=0)


@on_devices
@shapes
@pytest.mark.parametrize("size", [13, 18])
def test_the_grid_is_periodic(size, isotropic, device):
    """Gaussians moved by whole grids, either way, give the same sums."""
    cloud = cloud_of(2, torch.float64, device, isotropic=isotropic, reach=4.2)
    step = size * torch.tensor([-3.0, 2.0], dtype=torch.float64, device=device)
    moved = Cloud(cloud.centre + step, cloud.weight, cloud.precision, cloud.reach)
    # Offsets are differences of numbers up to a hundred, which costs a digit or two.
    assert relative(triton_splat(moved, size), triton_splat(cloud, size)) < 10 * ROUND_OFF[torch.float64]


@on_devices
def test_each_patch_ends_at_its_own_reach(device):
    """Pixels c - reach <= x < c + reach of each Gaussian, and no others."""
    size, centre, reach = (
        32,
        torch.tensor([[8.25, 7.75], [30.5, 20.25]]),
        torch.tensor([[2.5, 1.5], [9.0, 4.5]]),
    )
    wanted = torch.zeros(size, size, dtype=torch.bool)
    pixel = torch.arange(-size, 2 * size)
    for c, r in zip(centre, reach, strict=True):
        x, y = (pixel[(pixel >= c[a] - r[a]) & (pixel < c[a] + r[a])] % size for a in (0, 1))
        wanted[y[:, None], x] = True
    flat = Cloud(centre[None], torch.ones(1, 2), torch.full((1, 2), 1e-3), reach[None])
    drawn = triton_splat(
        Cloud(*(f.to(device) for f in (flat.centre, flat.weight, flat.precision, flat.reach))), size
    )
    assert torch.equal(drawn[0].cpu() > 0, wanted)


@on_devices
@shapes
@pytest.mark.parametrize("box", [12, 13])
def test_images_and_their_gradients_are_those_of_plain_torch(box, isotropic, device):
    """Positions, amplitudes, widths, rotations and shifts, CTF included."""
    g = torch.Generator().manual_seed(1)
    position = box * (torch.rand(4, 3, generator=g, dtype=torch.float64) - 0.5)
    width = 0.8 + 0.4 * torch.rand(4, generator=g, dtype=torch.float64)
    if not isotropic:
        width = uniform_rotations(4, seed=1) * (width[:, None] * torch.tensor([1.0, 1.2, 1.5]))[:, None]
    shift = torch.randn(2, 2, generator=g, dtype=torch.float64)
    fields = (
        position,
        0.5 + torch.rand(4, generator=g, dtype=torch.float64),
        width,
        uniform_rotations(2),
        shift,
    )
    leaves = [field.to(device).requires_grad_() for field in fields]
    ctf = varied_ctf(2)
    there = {f.name: getattr(ctf, f.name) for f in fields_of(ctf)}
    ctf = replace(ctf, **{name: f.to(device) for name, f in there.items() if isinstance(f, Tensor)})
    wanted = torch.randn(2, box, box // 2 + 1, generator=g, dtype=torch.complex128).to(device)

    def rendered(backend: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        cloud, pose = Gaussians(*leaves[:3]), Pose(*leaves[3:])
        plane = splat_transforms(cloud, pose, ctf, box=box, pixel_size_A=1.0, backend=backend)
        return plane, torch.autograd.grad((plane - wanted).abs().square().sum(), leaves)

    (ours, our_gradients), (theirs, their_gradients) = rendered("triton"), rendered("torch")
    assert relative(ours.detach(), theirs.detach()) < CUT
    for mine, twin in zip(our_gradients, their_gradients, strict=True):
        assert relative(mine, twin) < CUT_GRADIENT


@on_devices
def test_maps_are_those_of_plain_torch(device):
    """One width for all: to round-off."""
    position = 6 * (torch.rand(3, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64) - 0.5)
    cloud = Gaussians(
        *(f.to(device) for f in (position, torch.ones(3).double(), 0.6 * torch.ones(3).double()))
    )
    ours, theirs = (
        map_transform(cloud, box=7, pixel_size_A=1.0, backend=name) for name in ("triton", "torch")
    )
    assert relative(ours, theirs) < ROUND_OFF[torch.float64]


@on_devices
def test_no_gaussians_are_an_empty_grid(device):
    nothing = [torch.zeros(shape, device=device) for shape in ((2, 0, 2), (1, 0), (1, 0), (1, 0, 2))]
    assert not triton_splat(Cloud(*nothing), 9).any()
    shapes = [
        tuple(field.shape) for field in triton_gather(Cloud(*nothing), torch.ones(2, 9, 9, device=device))
    ]
    assert shapes == [(2, 0, 2), (2, 0), (2, 0)]


@on_devices
def test_gaussians_gone_astray_are_refused(device):
    """A patch without end would keep a GPU busy without end."""
    cloud = Gaussians(
        *(f.to(device) for f in (torch.zeros(1, 3), torch.ones(1), torch.full((1,), MOST_REACH)))
    )
    with pytest.raises(BadInput, match="narrower than 110 pixels"):
        map_transform(cloud, box=8, pixel_size_A=1.0, backend="triton")


@on_devices
def test_nobody_gets_it_unasked(device, monkeypatch):
    """Where it could run, "auto" takes another."""
    cloud = Gaussians(*(torch.ones(shape, device=device) for shape in ((1, 3), (1,), (1,))))
    monkeypatch.setitem(splat_transform._KERNELS, "triton", None)
    map_transform(cloud, box=5, pixel_size_A=1.0)


if not INTERPRETED:

    @TRITON
    @pytest.mark.slow
    def test_the_laws_hold_in_tritons_interpreter():
        """All laws of this file on the CPU, none skipped."""
        root = Path(__file__).resolve().parents[2]
        line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
        surroundings = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(line, cwd=root, env=surroundings, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-4000:]
        assert "skipped" not in done.stdout

    @TRITON
    @pytest.mark.slow
    @pytest.mark.parametrize("capability", [80, 90])
    def test_it_compiles_for_a_gpu_that_is_not_there(capability, tmp_path, monkeypatch):
        """To machine code; only what draws adds atomically."""
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        triton = pytest.importorskip(
            "triton", minversion="3.3", reason="older Triton compiles by another call"
        )
        compiler = importlib.import_module("triton.compiler")
        target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
        kernel = importlib.import_module("cryorbit.physics.splat_triton_kernel").splat_patch
        for dim, isotropic, to_grid, kind in itertools.product(
            (2, 3), (True, False), (True, False), ("fp32", "fp64")
        ):
            fixed = {"dim": dim, "isotropic": isotropic, "to_grid": to_grid, "rows": 8, "columns": 16}
            kinds = {name: "*" + kind if i < 8 else "i32" for i, name in enumerate(kernel.arg_names)}
            source = compiler.ASTSource(
                fn=kernel, signature=kinds | dict.fromkeys(fixed, "constexpr"), constexprs=fixed
            )
            made = triton.compile(source, target=target, options={"num_warps": 1, "enable_fp_fusion": True})
            assert made.asm["cubin"]
            atomic = any(word in made.asm["ptx"] for word in ("red.global", "atom.global"))
            assert atomic == to_grid

    def test_where_it_cannot_run_it_is_refused():
        cloud = Gaussians(torch.zeros(1, 3), torch.ones(1), torch.ones(1))
        with pytest.raises(BadInput, match=r"needs a CUDA device, .* Choose backend 'torch'"):
            splat_transforms(cloud, Pose.identity(1), box=8, pixel_size_A=1.0, backend="triton")

    def test_triton_waits_until_it_is_asked_for():
        """Rendering by another backend loads no kernel of Triton's."""
        code = (
            "import sys, torch; from cryorbit.data import Gaussians; from cryorbit.physics.splat import map_transform;"
            "one = Gaussians(torch.zeros(1, 3), torch.ones(1), torch.ones(1));"
            "map_transform(one, box=4, pixel_size_A=1.0);"
            "sys.exit('cryorbit.physics.splat_triton_kernel' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
