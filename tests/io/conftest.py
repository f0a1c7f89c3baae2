"""Small particle files made on the spot."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from cryorbit.io.mrc import StackWriter

N, BOX, PIXEL_A = 6, 8, 2.0


def star_text(**blocks: pd.DataFrame | dict) -> str:
    """A STAR file written without any of our code: what RELION prints."""
    lines = []
    for name, block in blocks.items():
        lines += ["", "# version 30001", "", f"data_{name}", ""]
        if isinstance(block, dict):
            lines += [f"_{k}   {v}" for k, v in block.items()]
            continue
        lines += ["loop_ "] + [f"_{c} #{i} " for i, c in enumerate(block.columns, 1)]
        lines += [
            " ".join(f"{v:12.6f}" if isinstance(v, float) else str(v) for v in row)
            for row in block.itertuples(False)
        ]
    return "\n".join(lines) + "\n"


@pytest.fixture
def optics() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "rlnOpticsGroup": [2, 1],
            "rlnOpticsGroupName": ["second", "first"],
            "rlnVoltage": [200.0, 300.0],
            "rlnSphericalAberration": [1.4, 2.7],
            "rlnAmplitudeContrast": [0.07, 0.1],
            "rlnImagePixelSize": [PIXEL_A, PIXEL_A],
            "rlnImageSize": [BOX, BOX],
            "rlnImageDimensionality": [2, 2],
        }
    )


@pytest.fixture
def particles() -> pd.DataFrame:
    """Rows in no order of the stack; two stacks of one name in different folders."""
    where = ["Extract/a/s.mrcs", "Extract/b/s.mrcs"]
    return pd.DataFrame(
        {
            "rlnImageName": [f"{i:06d}@{where[i % 2]}" for i in (3, 2, 1, 4, 5, 6)],
            "rlnMicrographName": ["m2", "m1", "m2", "m1", "m2", "m1"],
            "rlnOpticsGroup": [1, 2, 1, 2, 1, 2],
            "rlnDefocusU": [15000.123456 + 7 * i for i in range(N)],
            "rlnDefocusV": [14000.654321 + 7 * i for i in range(N)],
            "rlnDefocusAngle": [10.5 * i for i in range(N)],
            "rlnPhaseShift": [5.25 * i for i in range(N)],
            "rlnAngleRot": [30.0, -170.5, 12.125, 0.0, 95.0, 179.0],
            "rlnAngleTilt": [50.0, 12.25, 90.0, 0.0, 180.0, 77.0],
            "rlnAnglePsi": [70.0, 33.0, -12.5, 45.0, 10.0, -179.5],
            "rlnOriginXAngst": [1.5, -2.25, 0.0, 3.125, 4.0, 0.5],
            "rlnOriginYAngst": [-0.75, 2.0, 0.0, 1.0, -4.5, 9.0],
            "rlnRandomSubset": [1, 2, 1, 2, 1, 2],
            "rlnSomethingNew": ["x", "007", "a'b", "a#b", "[1,2]", "z"],
        }
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A RELION project folder with two stacks of six images: image k of a is k, of b is 10 + k."""
    for name, offset in (("a", 0), ("b", 10)):
        folder = tmp_path / "Extract" / name
        folder.mkdir(parents=True)
        with StackWriter(folder / "s.mrcs", box=BOX, pixel_size_A=PIXEL_A) as stack:
            stack.append(torch.arange(1.0, N + 1)[:, None, None].expand(N, BOX, BOX) + offset)
    (tmp_path / "Refine3D" / "job007").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def star(project: Path, particles: pd.DataFrame, optics: pd.DataFrame) -> Path:
    """The STAR file of a refinement, its tables in reverse order, with a table that no one knows."""
    path = project / "Refine3D" / "job007" / "run_data.star"
    text = star_text(
        general={"rlnNewGeneral": "1.50", "rlnText": '"two words"'}, particles=particles, optics=optics
    )
    path.write_text(text)
    return path


@pytest.fixture
def write_star_text():
    """The writer of STAR text, for tests that change a table first."""
    return star_text
