"""Every script of the gallery runs and leaves one figure where it was told to."""

import runpy
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

matplotlib.use("Agg")

GALLERY = Path(__file__).resolve().parents[1] / "docs" / "gallery"
SCRIPTS = sorted(GALLERY.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_draws_its_figure(script, tmp_path, monkeypatch):
    """Run as a program in an empty folder: a picture with something in it, and no other file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(script), "figure.png"])
    runpy.run_path(str(script), run_name="__main__")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    picture = imread(tmp_path / "figure.png")
    assert min(picture.shape[:2]) > 300
    assert np.unique(picture[..., :3].reshape(-1, 3), axis=0).shape[0] > 50


def test_gallery_is_listed_and_short():
    """The list in its README names every script; none has 80 lines."""
    listed = (GALLERY / "README.md").read_text()
    assert len(SCRIPTS) >= 10
    for script in SCRIPTS:
        assert f"({script.name})" in listed
        assert len(script.read_text().splitlines()) < 80, script.name
