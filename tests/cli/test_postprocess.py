"""What `cryorbit postprocess` leaves behind, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cryorbit.cli.outputs import read_fsc
from cryorbit.fourier.filters import apply_b_factor
from cryorbit.io.fsc_xml import read_fsc_xml
from cryorbit.io.mrc import read_map, write_map
from cryorbit.io.star import read_star, write_star
from half_maps import noisy_halves, radius_px, white

PIXEL = 2.0
OWN = {
    "postprocess.mrc",
    "postprocess_masked.mrc",
    "mask.mrc",
    "local_resolution.mrc",
    "fsc.star",
    "fsc.xml",
    "fsc.csv",
    "guinier.csv",
    "cone_fsc.csv",
    "postprocess.json",
    "report.html",
}


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    """A folder as `reconstruct` leaves it: two half maps of a textured ball, odd box, and a curve."""
    folder, n = tmp_path_factory.mktemp("halves"), 33
    ball = (1.0 + white(n, 0)) * (radius_px(n) < 0.25 * n)
    signal = apply_b_factor(ball, b_factor_A2=60.0, pixel_size_A=PIXEL, ndim=3)
    for i, half in enumerate(noisy_halves(signal, noise=0.15 * float(signal.std()), pixel_size_A=PIXEL), 1):
        write_map(folder / f"half{i}.mrc", half)
    return folder


def test_two_half_maps_give_every_file(halves, shell, tmp_path):
    """All files, of one box and pixel size; the curves say the same in STAR, XML and CSV; JSON on stdout."""
    out = tmp_path / "out"
    code, printed, error = shell(
        "postprocess", halves / "half1.mrc", halves / "half2.mrc", "-o", out, "--json", "--fit-from-A", 20
    )
    assert code == 0, error
    assert {path.name for path in out.iterdir()} == OWN
    facts = json.loads(printed)
    assert facts == json.loads((out / "postprocess.json").read_text())
    for name in ("postprocess.mrc", "postprocess_masked.mrc", "mask.mrc", "local_resolution.mrc"):
        volume = read_map(out / name)
        assert volume.box == 33
        assert volume.pixel_size_A == pytest.approx(PIXEL)
    curve = read_fsc(out / "fsc.star")["corrected"]
    frequency, correlation = read_fsc_xml(out / "fsc.xml")
    np.testing.assert_allclose(frequency, curve.frequency_per_A, rtol=0, atol=1e-6)  # six decimals
    np.testing.assert_allclose(correlation, curve.correlation, rtol=0, atol=1e-6)
    table = pd.read_csv(out / "fsc.csv")
    np.testing.assert_allclose(table["corrected"], curve.correlation, rtol=1e-12)
    assert facts["resolution_0143_A"] == pytest.approx(curve.resolution_A(0.143))
    star = read_star(out / "fsc.star")
    assert list(star)[:3] == ["general", "fsc", "guinier"]
    assert star["general"]["rlnFinalResolution"][0] == pytest.approx(facts["resolution_0143_A"])
    assert "local resolution" in error
    page = (out / "report.html").read_text()
    assert "Sharpened map" in page
    assert "Surface, coloured by local resolution" in page
    (out / "report.html").unlink()
    (out / "local_resolution.mrc").unlink()
    assert shell("report", out)[0] == 0
    again = (out / "report.html").read_text()
    assert "Guinier plot" in again
    assert "Surface, coloured" not in again


def test_a_run_folder_keeps_what_its_curve_file_held(halves, shell, tmp_path):
    """Other tables and columns of fsc.star stay; doing it again replaces our files; --no-local leaves no old one."""
    run = tmp_path / "run"
    run.mkdir()
    for i in (1, 2):
        write_map(run / f"half{i}.mrc", read_map(halves / f"half{i}.mrc"))
    shells = 33 // 2 + 1
    before = pd.DataFrame({"rlnSpectralIndex": range(shells), "someColumn": np.arange(shells) * 0.5})
    write_star(run / "fsc.star", {"fsc": before, "other": pd.DataFrame({"x": [1, 2]})})
    assert shell("postprocess", run, "--b-factor-A2", -50, "--no-report")[0] == 0
    star = read_star(run / "fsc.star")
    assert star["fsc"]["someColumn"].tolist() == before["someColumn"].tolist()
    assert star["other"]["x"].tolist() == [1, 2]
    assert (run / "local_resolution.mrc").exists()
    code, _, error = shell("postprocess", run, "--b-factor-A2", -90, "--no-local", "--no-report")
    assert code == 0, error
    assert json.loads((run / "postprocess.json").read_text())["b_factor_A2"] == -90
    assert not (run / "local_resolution.mrc").exists()


def test_a_given_mask_is_used(halves, shell, tmp_path):
    """The mask's own values come out again."""
    mask = read_map(halves / "half1.mrc")
    ball = torch.clamp(10.0 - radius_px(33), 0, 1).float()
    write_map(tmp_path / "m.mrc", type(mask)(ball, PIXEL))
    code, _, error = shell(
        "postprocess",
        halves,
        "-o",
        tmp_path / "out",
        "--mask",
        tmp_path / "m.mrc",
        "--no-local",
        "--no-report",
    )
    assert code == 0, error
    torch.testing.assert_close(read_map(tmp_path / "out" / "mask.mrc").values, ball)


def test_what_is_not_two_half_maps_is_refused(halves, shell, tmp_path):
    """One line, exit code 2, and nothing written."""
    half = halves / "half1.mrc"
    for words, reason in (
        ((tmp_path,), "no half1.mrc and no half2.mrc"),
        ((half,), "is a single file"),
        ((tmp_path / "no",), "is not there"),
        ((half, halves / "half2.mrc"), "Name it with -o"),
        ((half, half, "-o", tmp_path / "o"), "given twice"),
        ((half, half, half, "-o", tmp_path / "o"), "3 names given"),
    ):
        code, _, error = shell("postprocess", *words)
        assert code == 2
        assert reason in error
        assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_mask_of_the_user_is_not_overwritten(halves, shell, tmp_path):
    """mask.mrc that no earlier postprocess wrote stays; the refusal names it."""
    write_map(tmp_path / "mask.mrc", read_map(halves / "half1.mrc"))
    before = (tmp_path / "mask.mrc").read_bytes()
    code, _, error = shell("postprocess", halves, "-o", tmp_path)
    assert code == 2
    assert "mask.mrc" in error
    assert (tmp_path / "mask.mrc").read_bytes() == before
