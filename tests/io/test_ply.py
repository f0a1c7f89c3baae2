from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from cryorbit.data import Gaussians
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.gaussians import load_gaussians, read_gaussians, save_gaussians
from cryorbit.io.ply import GaussianEMFrame, read_gaussianem, read_gaussianem_cfg, write_gaussianem

FRAME = GaussianEMFrame(box=128, pixel_size_A=3.0, least_px=0.3, most_px=0.6)
STORED = 1e-5  # relative: float32 before and after softplus and sigmoid
NAMES = "x y z nx ny nz density scale_0 rot_0 rot_1 rot_2 rot_3".split()


def cloud(n: int = 6) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        60 * torch.randn(n, 3, generator=g),
        torch.logspace(-3, 4, n),
        3.0 * (0.31 + 0.28 * torch.rand(n, generator=g)),
    )


def write_raw(folder, rows: np.ndarray, *, form: str = "binary_little_endian", names=NAMES):
    """A point cloud and cfg as GaussianEM writes them, made by hand."""
    head = f"ply\nformat {form} 1.0\nelement vertex {len(rows)}\n"
    head += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    if form == "ascii":
        body = "\n".join(" ".join(f"{v:.9g}" for v in row) for row in rows).encode()
    else:
        body = rows.astype("<f4" if "little" in form else ">f4").tobytes()
    (folder / "point_cloud.ply").write_bytes(head.encode() + body)
    cfg = {"nVoxel": [128] * 3, "sVoxel": [2.0] * 3, "pixelSize": 3.0}
    cfg |= {"scale_min": 0.00234375, "scale_max": 0.0046875, "std": 8.8}
    (folder / "cfg.json").write_text(json.dumps({"bbox": [[-1] * 3, [1] * 3], "cfg": cfg}))
    return folder / "point_cloud.ply", folder / "cfg.json"


ROW = np.array([[0.5, -0.25, 0.125, 0, 0, 0, 1.5, -0.3, 1, 0, 0, 0]])


@pytest.mark.parametrize("form", ["binary_little_endian", "binary_big_endian", "ascii"])
def test_numbers_mean_what_gaussianem_means(tmp_path, form):
    """Half boxes, softplus of the peak's height, sigmoid between bounds: 0.3 to 0.6 px of 3 A."""
    ply, cfg = write_raw(tmp_path, ROW, form=form)
    found = read_gaussianem(ply, cfg)
    sigma = 3.0 * (0.3 + 0.3 / (1 + math.exp(0.3)))
    height = math.log1p(math.exp(1.5))
    torch.testing.assert_close(found.position_A, torch.tensor([[96.0, -48.0, 24.0]]))
    torch.testing.assert_close(found.width_A, torch.tensor([sigma]))
    torch.testing.assert_close(found.amplitude, torch.tensor([height * (2 * math.pi) ** 1.5 * sigma**3]))


def test_the_rasteriser_draws_half_a_pixel_lower_in_an_even_box(tmp_path):
    ply, cfg = write_raw(tmp_path, ROW)
    apart = read_gaussianem(ply, cfg).position_A - read_gaussianem(ply, cfg, origin="rasteriser").position_A
    torch.testing.assert_close(apart, torch.full((1, 3), 1.5))
    odd = GaussianEMFrame(box=127, pixel_size_A=3.0, least_px=0.3, most_px=0.6)
    assert odd.origin_A("rasteriser") == 0.0


@pytest.mark.parametrize("origin", ["voxels", "rasteriser"])
def test_written_and_read_is_the_same(tmp_path, origin):
    """Amplitudes over seven orders of magnitude; and the bytes of a second copy are those of the first."""
    here, cfg = tmp_path / "a.ply", tmp_path / "cfg.json"
    write_gaussianem(here, cfg, cloud(), FRAME, origin=origin)
    back = read_gaussians(here, origin=origin)
    for name in ("position_A", "amplitude", "width_A"):
        torch.testing.assert_close(getattr(back, name), getattr(cloud(), name), rtol=STORED, atol=0)
    frame = read_gaussianem_cfg(cfg)
    assert (frame.box, frame.pixel_size_A) == (128, 3.0)
    assert frame.least_px == pytest.approx(0.3)
    assert here.read_bytes().partition(b"end_header\n")[0].decode().split("property float ")[1:] == [
        f"{name}\n" for name in NAMES
    ]


def test_what_the_layout_cannot_hold_is_refused_by_row(tmp_path):
    ply, cfg = tmp_path / "a.ply", tmp_path / "cfg.json"
    some = cloud()
    wide = some.width_A.clone()
    wide[2] = 9.0
    with pytest.raises(BadInput, match=r"Gaussian 2 has sigma outside 0\.3 to 0\.6 px"):
        write_gaussianem(ply, cfg, Gaussians(some.position_A, some.amplitude, wide), FRAME)
    negative = some.amplitude.clone()
    negative[4] = -1
    with pytest.raises(BadInput, match="Gaussian 4 has no positive amplitude"):
        write_gaussianem(ply, cfg, Gaussians(some.position_A, negative, some.width_A), FRAME)
    long = Gaussians(some.position_A, some.amplitude, some.factor_A())
    with pytest.raises(BadInput, match="isotropic"):
        write_gaussianem(ply, cfg, long, FRAME)
    assert not ply.exists()


def test_bad_files_are_named_with_row_and_remedy(tmp_path):
    """Cut short, of another kind, without a field, with a NaN; cfg broken or incomplete."""
    ply, cfg = write_raw(tmp_path, np.repeat(ROW, 4, 0))
    whole = ply.read_bytes()
    ply.write_bytes(whole[:-60])
    with pytest.raises(BadFile, match="4 vertices announced, 2 there"):
        read_gaussianem(ply, cfg)
    ply.write_bytes(b"solid stl")
    with pytest.raises(BadFile, match="not a PLY file"):
        read_gaussianem(ply, cfg)
    write_raw(tmp_path, ROW[:, :6], names=NAMES[:6])
    with pytest.raises(BadFile, match="no density, scale_0"):
        read_gaussianem(ply, cfg)
    rows = np.repeat(ROW, 4, 0)
    rows[3, 0] = np.nan
    write_raw(tmp_path, rows)
    with pytest.raises(BadFile, match="vertex 3 is not finite"):
        read_gaussianem(ply, cfg)
    ply.write_bytes(whole.replace(b"property float x", b"property list x"))
    with pytest.raises(BadFile, match="property list x"):
        read_gaussianem(ply, cfg)
    ply.write_bytes(whole.replace(b"element vertex 4", b"element face 4"))
    with pytest.raises(BadFile, match="not a list of vertices"):
        read_gaussianem(ply, cfg)
    ply.write_bytes(whole)
    for text in ("{", "{}", '{"cfg": {"nVoxel": [128], "sVoxel": [2]}}', '{"cfg": 3}'):
        cfg.write_text(text)
        with pytest.raises(BadFile, match=r"cfg\.json: not a GaussianEM cfg"):
            read_gaussianem(ply, cfg)
    with pytest.raises(BadFile, match=r"\.safetensors or a \.ply"):
        read_gaussians(tmp_path / "a.txt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isotropic", [True, False])
def test_our_own_format_keeps_every_bit(tmp_path, isotropic, dtype):
    some = cloud().to(torch.zeros(1, dtype=dtype))
    width = some.width_A if isotropic else some.factor_A()
    some = Gaussians(some.position_A.expand(2, -1, -1), some.amplitude, width)
    save_gaussians(tmp_path / "g.safetensors", some, {"box": 64})
    back, about = load_gaussians(tmp_path / "g.safetensors")
    assert about == {"box": 64}
    for name in ("position_A", "amplitude", "width_A"):
        assert torch.equal(getattr(back, name), getattr(some, name))
        assert getattr(back, name).dtype == dtype


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    from cryorbit.io.checkpoint import save_state

    path = tmp_path / "g.safetensors"
    save_state(path, {"weights": torch.ones(2)}, {"kind": "network"})
    with pytest.raises(BadFile, match="not of Gaussians"):
        load_gaussians(path)
    fields = {
        "position_A": torch.zeros(2, 3),
        "amplitude": torch.ones(2),
        "width_A": torch.tensor([1.0, 0.0]),
    }
    save_state(path, fields, {"kind": "gaussians"})
    with pytest.raises(BadFile, match="width_A of Gaussian 1"):
        load_gaussians(path)
    path.write_bytes(b"short")
    with pytest.raises(BadFile, match="not a whole checkpoint"):
        load_gaussians(path)
