from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from cryorbit.analysis.pose_error import pose_errors
from cryorbit.cli.outputs import read_fsc, write_fsc
from cryorbit.data import Volume
from cryorbit.io.mrc import read_map, write_map
from cryorbit.io.particles import match_ids, read_particles


def test_simulate_leaves_stack_and_truth(simulated):
    """simulate writes images, tables with and without poses, and the map; ids join them."""
    found = {path.name for path in simulated.iterdir()}
    assert {"particles.star", "particles.mrcs", "truth.star", "truth.mrc"} <= found
    stack, truth = read_particles(simulated / "particles.star"), read_particles(simulated / "truth.star")
    assert stack.pose is None
    assert truth.pose is not None
    assert stack.ctf is not None
    assert match_ids(stack.ids, truth.ids).tolist() == list(range(320))
    assert read_map(simulated / "truth.mrc").box == stack.box == 16


def test_simulate_again_from_its_settings_gives_the_same_images(simulated, shell, tmp_path):
    """settings.yaml of a simulation is a --config that repeats it."""
    settings = simulated / "settings.yaml"
    code, _, _ = shell("simulate", "synthetic", "-o", tmp_path / "again", "--config", settings)
    assert code == 0
    first, again = (folder / "particles.mrcs" for folder in (simulated, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()


def test_simulate_from_a_map_and_a_ctf_table(simulated, shell, tmp_path):
    """A map is a model too, and CTF rows may come from a particle file."""
    code, _, error = shell(
        "simulate", simulated / "truth.mrc", "-o", tmp_path / "s", "--ctf-from", simulated / "particles.star",
        "--n-particles", 5, "--box", 16, "--pixel-size-A", 20,
    )  # fmt: skip
    assert code == 0, error
    known = read_particles(simulated / "particles.star").ctf.defocus_u_A
    assert torch.isin(read_particles(tmp_path / "s" / "particles.star").ctf.defocus_u_A, known).all()


def test_check_of_a_good_stack_finds_no_error(simulated, shell):
    """check exits 0, and its JSON has every check with a level."""
    code, out, _ = shell("check", simulated / "particles.star", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["errors"] == 0
    names = {check["name"] for check in report["checks"]}
    assert {"particles", "images", "pixel size", "CTF", "half sets", "duplicates", "resources"} <= names


def test_check_prints_a_table(simulated, shell):
    """Without --json each check is a line."""
    code, out, _ = shell("check", simulated / "particles.star")
    assert code == 0
    assert "320 of 16 px at 20 A/px" in out
    assert out.splitlines()[-1] == "0 error(s), 0 warning(s)"


def test_check_of_a_missing_file_is_an_error_in_its_report(shell, tmp_path):
    """check reports what it cannot read as its own finding and exits 1, in JSON too."""
    code, out, _ = shell("check", tmp_path / "absent.star", "--json")
    assert code == 1
    assert json.loads(out)["errors"] == 1


@pytest.mark.parametrize("middle", ["a.cs", "a.star"])
def test_convert_there_and_back_keeps_poses_and_ctf(simulated, shell, tmp_path, middle):
    """star -> cs -> star keeps rotations to 1e-5, shifts to 1e-4 A and CTF to 1e-3."""
    shutil.copy(simulated / "particles.mrcs", tmp_path)
    shutil.copy(simulated / "truth.star", tmp_path)
    assert shell("convert", tmp_path / "truth.star", tmp_path / middle)[0] == 0
    assert shell("convert", tmp_path / middle, tmp_path / "back.star")[0] == 0
    first, back = read_particles(tmp_path / "truth.star"), read_particles(tmp_path / "back.star")
    assert (first.pose.rotation - back.pose.rotation).abs().max() < 1e-5
    assert (first.pose.shift_A - back.pose.shift_A).abs().max() < 1e-4
    assert (first.ctf.defocus_u_A - back.ctf.defocus_u_A).abs().max() < 1e-2


def test_convert_writes_cryodrgn_pickles(simulated, shell, tmp_path):
    """The poses in pose.pkl, read beside the images, are those of the STAR file."""
    assert shell("convert", simulated / "truth.star", tmp_path / "pose.pkl")[0] == 0
    assert shell("convert", simulated / "truth.star", tmp_path / "ctf.pkl")[0] == 0
    back = read_particles(
        simulated / "particles.mrcs", poses=tmp_path / "pose.pkl", ctf=tmp_path / "ctf.pkl", shifts="fraction"
    )
    truth = read_particles(simulated / "truth.star")
    assert pose_errors(back.pose, truth.pose).mse < 1e-6


def test_convert_maps(simulated, shell, tmp_path):
    """A map keeps its values and its pixel size."""
    assert shell("convert", simulated / "truth.mrc", tmp_path / "a.map")[0] == 0
    first, second = read_map(simulated / "truth.mrc"), read_map(tmp_path / "a.map")
    assert torch.equal(first.values, second.values)
    assert first.pixel_size_A == second.pixel_size_A


def test_convert_writes_over_nothing(simulated, shell, tmp_path):
    """OUT that is there is an error unless --overwrite is given."""
    (tmp_path / "a.star").write_text("mine")
    code, _, error = shell("convert", simulated / "truth.star", tmp_path / "a.star")
    assert code == 2
    assert "overwrite" in error
    assert (tmp_path / "a.star").read_text() == "mine"
    assert shell("convert", simulated / "truth.star", tmp_path / "a.star", "--overwrite")[0] == 0


def test_fsc_of_a_map_with_itself_is_one(simulated, shell):
    """All shells of equal maps correlate fully, and the curve is said to be limited by the pixel size."""
    path = simulated / "truth.mrc"
    code, out, _ = shell("fsc", path, path, "--json")
    curve = json.loads(out)
    assert code == 0
    np.testing.assert_allclose(curve["fsc"], 1.0, atol=1e-6)
    assert curve["resolution_0143_A"] == pytest.approx(40.0)
    assert any("pixel size" in warning for warning in curve["warnings"])


def test_fsc_with_a_mask_shows_what_the_mask_adds(shell, tmp_path):
    """With a mask, unmasked, masked, randomised and corrected curves are printed."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.arange(24) - 12.0
    blob = torch.exp(-(grid**2 + grid[:, None] ** 2 + grid[:, None, None] ** 2) / 20)
    for name in ("a", "b"):
        noise = 0.1 * torch.randn(24, 24, 24, generator=generator)
        write_map(tmp_path / f"{name}.mrc", Volume(blob + noise, 3.0))
    write_map(tmp_path / "mask.mrc", Volume((blob > 0.2).float(), 3.0))
    code, out, _ = shell("fsc", tmp_path / "a.mrc", tmp_path / "b.mrc", "--mask", tmp_path / "mask.mrc")
    assert code == 0
    assert all(word in out for word in ("masked", "randomised", "corrected", "FSC 0.143"))


def test_fsc_can_align_first(shell, tmp_path):
    """A turned, mirrored copy of a map correlates with it after --align, and the hand is told."""
    assert (
        shell(
            "simulate",
            "synthetic",
            "-o",
            tmp_path / "s",
            "--n-particles",
            1,
            "--box",
            40,
            "--pixel-size-A",
            7,
        )[0]
        == 0
    )
    truth = tmp_path / "s" / "truth.mrc"
    volume = read_map(truth)
    turned = volume.values.rot90(1, (1, 2)).flip(0).contiguous()
    write_map(tmp_path / "turned.mrc", Volume(turned, volume.pixel_size_A))
    plain = json.loads(shell("fsc", tmp_path / "turned.mrc", truth, "--json")[1])
    aligned = json.loads(shell("fsc", tmp_path / "turned.mrc", truth, "--align", "--json")[1])
    assert min(aligned["fsc"][1:10]) > 0.95
    assert min(plain["fsc"][1:10]) < 0.9
    assert aligned["hand"] == -1


def test_fsc_table_reads_back(tmp_path, simulated):
    """fsc.star keeps shells and curves."""
    from cryorbit.analysis.fsc import fourier_shell_correlation

    volume = read_map(simulated / "truth.mrc")
    curve = fourier_shell_correlation(volume, Volume(volume.values.roll(1, 0), volume.pixel_size_A))
    write_fsc(tmp_path / "fsc.star", {"unmasked": curve, "masked": curve})
    back = read_fsc(tmp_path / "fsc.star")
    assert set(back) == {"unmasked", "masked"}
    torch.testing.assert_close(back["masked"].correlation, curve.correlation.double(), rtol=0, atol=1e-6)


def test_doctor_reports_versions_and_devices(shell):
    """doctor tells what there is, as JSON too."""
    code, out, _ = shell("doctor", "--json")
    facts = json.loads(out)
    assert code in (0, 1)
    assert {"cryorbit", "torch", "cores", "gpu", "memory_free", "disk_free", "problems"} <= set(facts)


def test_print_config_needs_no_required_option():
    """--print-config of a verb is YAML of its options, given or not."""
    line = [sys.executable, "-m", "cryorbit.cli.main", "simulate", "--print-config", "--snr", "2"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    printed = yaml.safe_load(done.stdout)
    assert printed["snr"] == 2.0
    assert "out" not in printed
    assert done.stderr == ""
