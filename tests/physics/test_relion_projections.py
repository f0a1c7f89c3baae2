"""RELION's own projections of a known map: an outside check of every sign and centre."""

from __future__ import annotations

from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import torch
from torch import Tensor

from cryorbit.data import Pose, Volume
from cryorbit.fourier.resample import fourier_crop
from cryorbit.geometry.conventions import relion_angles_to_matrix
from cryorbit.physics.project import project

SAME_IMAGE = (
    0.999  # correlation; measured 0.99958 or more in exact mode, 0.99998 in RELION's own stride-2 reading
)

pytestmark = pytest.mark.data


def read(folder: Path, name: str) -> tuple[Tensor, Pose]:
    table = gemmi.cif.read(str(folder / f"{name}.star")).find_block("particles")

    def columns(*labels: str) -> Tensor:
        values = [[float(v) for v in table.find_values(label)] for label in labels]
        return torch.tensor(values, dtype=torch.float64).T

    angles = columns("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi")
    unit = "" if len(table.find_values("_rlnOriginX")) else "Angst"
    origin_A = columns(f"_rlnOriginX{unit}", f"_rlnOriginY{unit}")  # 1 A per pixel
    images = mrcfile.read(folder / f"{name}.mrcs").astype(np.float64)
    return torch.from_numpy(images), Pose(relion_angles_to_matrix(angles), -origin_A)


def half_voxel_back(values: Tensor) -> Tensor:
    k = torch.fft.fftfreq(values.shape[0], dtype=torch.float64)
    phase = torch.polar(torch.ones_like(k), torch.pi * k)
    shift = phase[:, None, None] * phase[:, None] * phase
    return torch.fft.ifftn(torch.fft.fftn(values) * shift).real


def correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (x - x.mean((-2, -1), keepdim=True) for x in (a, b))
    return (a * b).sum((-2, -1)) / (a.norm(dim=(-2, -1)) * b.norm(dim=(-2, -1)))


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("name", ["", "_centered", "_shifted"])
@pytest.mark.parametrize("box", [64, 65])
def test_we_project_what_relion_projects(data_dir: Path, box: int, name: str, mode: str):
    """Angles, origins (circular) and centre are RELION's; its odd box is centred one pixel late."""
    values = torch.from_numpy(mrcfile.read(data_dir / "maps/ribosome70S_clean_65p.mrc").astype(np.float64))
    if box == 64:
        values = fourier_crop(values, 64, ndim=3)
        values = (
            values if name else half_voxel_back(values)
        )  # the plain file was made from a map half a voxel off
    images, pose = read(data_dir / f"stacks/relion_proj_{box}", f"rln_proj_{box}{name}")
    ours = project(Volume(values, 1.0), pose, mode=mode)
    if box == 65:
        ours = ours.roll((1, 1), dims=(1, 2))
    assert correlation(ours, images).min().item() > SAME_IMAGE
