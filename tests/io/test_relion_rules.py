"""What RELION asks of a STAR file, looked for in the text that we write."""

from __future__ import annotations

import re
import warnings

import pytest

from cryorbit.io.particles import read_particles, write_particles
from cryorbit.io.star import read_star

REQUIRED_OPTICS = {
    "rlnOpticsGroup",
    "rlnOpticsGroupName",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnImageDimensionality",
}


def assert_relion_opens(path) -> None:
    """Line ends, versions, tables, required columns, names and joins, as RELION 3.1 to 5 want them."""
    raw = path.read_bytes()
    assert b"\r" not in raw
    text = raw.decode()
    blocks = [m.start() for m in re.finditer(r"^data_", text, re.MULTILINE)]
    for start in blocks:
        before = [line for line in text[:start].splitlines() if line.strip()]
        assert before[-1] == "# version 30001"
    tables = read_star(path)
    optics, particles = tables["optics"], tables["particles"]
    assert optics.columns.is_unique
    assert particles.columns.is_unique
    assert optics.columns.isin(REQUIRED_OPTICS).sum() == len(REQUIRED_OPTICS)
    assert (optics["rlnOpticsGroup"] >= 1).all()
    assert set(particles["rlnOpticsGroup"]) <= set(optics["rlnOpticsGroup"])
    assert set(particles.columns) >= {"rlnImageName", "rlnDefocusU", "rlnAngleRot", "rlnOriginXAngst"}
    assert not {"rlnOriginX", "rlnOriginY"} & set(particles.columns)
    if "rlnRandomSubset" in particles:
        assert set(particles["rlnRandomSubset"]) <= {1, 2}
    for name in particles["rlnImageName"]:
        index, stack = name.split("@")
        assert int(index) >= 1
        assert stack.endswith((".mrcs", ":mrcs"))


def test_a_refined_file_is_one_that_relion_opens(star, tmp_path):
    """From RELION and back."""
    write_particles(tmp_path / "a.star", read_particles(star))
    assert_relion_opens(tmp_path / "a.star")


def test_a_file_from_cryosparc_is_one_that_relion_opens(star, tmp_path):
    """By way of a .cs file, which knows no optics table."""
    write_particles(tmp_path / "a.cs", read_particles(star))
    write_particles(tmp_path / "b.star", read_particles(tmp_path / "a.cs"))
    assert_relion_opens(tmp_path / "b.star")


@pytest.mark.data
@pytest.mark.parametrize("name", ["relion31.v2.star", "cryosparc_P12_J24_001_particles.cs.gz"])
def test_real_files_become_ones_that_relion_opens(data_dir, tmp_path, name):
    """Files of real projects."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = read_particles(data_dir / "metadata" / name, images="absent")
        write_particles(tmp_path / "a.star", stack)
    assert_relion_opens(tmp_path / "a.star")
