"""`bench amortised --scale full` on a small case: the options that are given hold, all else is the full scale's."""

import json

import pytest

from cryorbit.cli.bench_amortised import published_line


@pytest.mark.slow
def test_full_scale_on_few_small_images(shell, tmp_path):
    """Simulated, trained and scored by the same code; rows say how large they were and how fast."""
    size = ["--n-particles", 200, "--box", 24, "--pixel-size-A", 16, "--width", 0.125, "--max-visits", 64]
    few = ["--method", "D4 L2", "--seeds", 1, "--snr", 1, "--threads", 1, "--device", "cpu"]
    code, out, said = shell(
        "bench", "amortised", "--json", tmp_path / "rows.json", "--scale", "full", *size, *few
    )
    assert code == 0
    assert "images/s" in said
    assert published_line() in said
    rows = {
        row["method"]: row for row in json.loads((tmp_path / "rows.json").read_text()) if not row["published"]
    }
    assert {"D4 L2", "D4 L2, Gauss-Newton", "oracle (true poses)", "chance (random poses)"} >= set(rows)
    row = rows["D4 L2"]
    assert (row["n_particles"], row["box"], row["box_px"], row["image_visits_all"]) == (200, 24, 24, 64)
    assert row["images_per_second"] > 0
    assert row["device"] == "cpu"
    assert "images of 128 px" in out + said
