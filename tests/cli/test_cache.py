"""`--cache`: made once, used again, and in the way of nothing."""

from __future__ import annotations

import os
import shutil

from cryorbit.io.mrc import read_map
from cryorbit.io.particles import read_particles

HALF_PRECISION = 1e-3
"""Relative change of a map: pixels are rounded to 2^-11 of themselves, independently."""


def test_a_cache_is_made_once_and_used_again(shell, simulated, tmp_path):
    data = shutil.copytree(simulated, tmp_path / "data")
    line = ["reconstruct", data / "truth.star", "--threads", 1, "--device", "cpu"]
    said = {}
    for name, more in {
        "plain": [],
        "first": ["--cache", tmp_path / "cache"],
        "again": ["--cache", tmp_path / "cache"],
    }.items():
        code, _, said[name] = shell(*line, "-o", tmp_path / name, *more)
        assert code == 0, said[name]
    assert "copying 320 images" in said["first"]
    assert "copying" not in said["again"]
    plain, first, again = (read_map(tmp_path / n / "half1.mrc").values for n in ("plain", "first", "again"))
    assert float((plain - first).norm() / plain.norm()) < HALF_PRECISION
    assert (first == again).all()
    stack = next(data.glob("*.mrcs"))
    os.utime(stack, ns=(1, 1))
    code, _, text = shell(*line, "-o", tmp_path / "changed", "--cache", tmp_path / "cache")
    assert code == 0, text
    assert f"{stack.name} has changed" in text


def test_results_name_the_stacks_and_not_the_cache(shell, simulated, tmp_path):
    few = ["--rounds", 1, "--threads", 1, "--particle-diameter-A", 200, "--start-resolution-A", 60]
    line = ["refine", simulated / "truth.star", "-o", tmp_path / "run", "--cache", tmp_path / "cache"]
    code, _, said = shell(*line, *few)
    assert code == 0, said
    found = read_particles(tmp_path / "run" / "particles.star")
    assert (found.images[:] == read_particles(simulated / "truth.star").images[:]).all()
