"""Laws of the report."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from cryorbit.analysis.fsc import ShellCorrelation
from cryorbit.data import CTF, Pose, Volume
from cryorbit.errors import BadFile, BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.geometry.symmetry import point_group
from cryorbit.report import figures_map, surface
from cryorbit.report.data import ExampleImages, ImageStatistics, ReportData
from cryorbit.report.figures_particles import view_density
from cryorbit.report.html import render_html, write_report
from laws import ROUND_OFF

N = 24


@pytest.fixture(autouse=True)
def coarse_surface(monkeypatch):
    """Surfaces are drawn small here: what they show is tested next door."""
    monkeypatch.setattr(surface, "_GRID", 48)


class Page(HTMLParser):
    """What a page asks for and whether its tags close."""

    void = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data") and v]
        if tag == "img":
            self.images.append(values)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def a_map(seed: int = 0) -> Volume:
    x = torch.arange(N) - N // 2
    radius = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).float().sqrt()
    noise = torch.randn(N, N, N, generator=torch.Generator().manual_seed(seed))
    return Volume(torch.sigmoid(6 - radius) + 0.05 * noise, 4.0)


def full_data() -> ReportData:
    generator = torch.Generator().manual_seed(1)
    n = 60
    rotation = random_rotations(n, generator=generator, dtype=torch.float32)
    shells = torch.arange(N // 2 + 1) / (N * 4.0)
    images = torch.randn(7, N, N, generator=generator)
    return ReportData(
        map=a_map(),
        settings={"symmetry": "C1", "seed": 3, "shift_range_A": 12.5, "ctf": True, "names": ["a", "b"]},
        title="Ab initio map of <particles> & more",
        command="cryorbit abinitio 'a b.star' -o out",
        versions={"cryorbit": "0.1.0", "torch": "2.13.0"},
        date="1 May",
        seconds=83.0,
        verdict="The restarts agree.",
        verdict_level="good",
        notes=["No GPU was found."],
        half_maps=(a_map(2), a_map(3)),
        truth_curve=ShellCorrelation(shells, torch.linspace(1, 0, N // 2 + 1)),
        pose=Pose(rotation, torch.zeros(n, 2)),
        symmetry="D2",
        confidence=torch.rand(n, generator=generator),
        entropy=-torch.rand(n, generator=generator),
        ctf=CTF.uniform(n, defocus_A=15000.0),
        statistics=ImageStatistics(shells, 1 + shells, 1 - shells, snr=0.1),
        examples=ExampleImages(images, images.flip(0), [f"{i}@stack.mrcs" for i in range(7)]),
        particles={"File": "p.star", "Particles": n},
        metrics=[
            {
                "stage": "coarse" if i < 4 else "refine",
                "step": i,
                "radius": 4 + i,
                "log_evidence": -9.0 / (1 + i),
            }
            for i in range(9)
        ],
        evaluation={"mse": 0.01, "hand": -1, "rotation_error_deg_median": 2.0, "something new": None},
    )


def without_pictures(text: str) -> str:
    return re.sub(r'src="data:[^"]*"', "", text)


def test_the_page_needs_nothing_but_itself():
    """Every address in a full report is inline or within the page; no script, nothing from outside."""
    text = render_html(full_data())
    page = Page(text)
    assert page.open == []
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert "<script" not in text
    assert not re.search(r"url\(|@import|https?://", without_pictures(text))
    anchors = {a[1:] for a in page.addresses if a.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]+)"', text))
    assert all(image.get("alt") for image in page.images)
    assert len(text) < 5_000_000


def test_a_full_report_says_it_all():
    """Title, verdict, command, versions, settings, notes and numbers are there, escaped."""
    text = render_html(full_data())
    for words in (
        "Ab initio map of &lt;particles&gt; &amp; more",
        "The restarts agree.",
        "cryorbit abinitio &#39;a b.star&#39; -o out",
        "2.13.0",
        "shift_range_A",
        "12.5",
        "No GPU was found.",
        "not gold standard",
        "simulation only",
        "Viewing directions",
        "Particles beside their reprojections",
        "Convergence",
        "1 coarse, 2 refine",
        "something new",
        "1 min 23 s",
    ):
        assert words in text, words


def test_gold_standard_is_said_only_where_it_holds(monkeypatch):
    """The tag, the card and the claim follow the one fact."""
    monkeypatch.setattr(figures_map, "surface_pictures", lambda volume: None)
    halves = (a_map(2), a_map(3))
    common = ReportData(map=a_map(), settings={}, half_maps=halves)
    apart = ReportData(map=a_map(), settings={}, half_maps=halves, gold_standard=True)
    assert "what those had shared before" in render_html(apart)
    assert "low-passed at 30 Å, and nothing afterwards" in render_html(replace(apart, shared_to_A=30.0))
    assert "not gold standard" not in render_html(apart)
    assert "not gold standard" in render_html(common)


def test_a_map_and_settings_are_enough():
    """Whatever a run does not have is left out without a trace."""
    page = render_html(ReportData(map=a_map(), settings={}))
    assert Page(page).open == []
    text = without_pictures(page)
    for words in ("Half maps", "Viewing directions", "Convergence", "Against the truth", "None", "nan"):
        assert words not in text, words


@pytest.mark.parametrize("name", sorted({f.name for f in fields(ReportData)} - {"map", "settings"}))
def test_any_part_may_stand_alone(name, monkeypatch):
    """A report comes out with only one of the optional parts there."""
    monkeypatch.setattr(figures_map, "surface_pictures", lambda volume: None)  # drawn in other tests
    data = ReportData(map=a_map(), settings={}, **{name: getattr(full_data(), name)})
    assert Page(render_html(data)).open == []


def test_a_map_without_density_still_gives_a_report():
    """A flat map, as a failed run may leave, is reported and not an error."""
    flat = Volume(torch.zeros(N, N, N), 4.0)
    text = render_html(
        ReportData(map=flat, settings={}, half_maps=(flat, flat), verdict_level="bad", verdict="Flat.")
    )
    assert "Central sections" in text
    assert "Not converged" in text


def test_the_file_is_whole_or_not_there(tmp_path: Path):
    """The report replaces an older one, leaves nothing beside it, and says where it cannot be written."""
    target = tmp_path / "report.html"
    target.write_text("old")
    write_report(target, ReportData(map=a_map(), settings={"a": 1}))
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(BadFile, match=r"nowhere"):
        write_report(tmp_path / "nowhere" / "report.html", ReportData(map=a_map(), settings={}))


def test_the_same_run_gives_the_same_page(monkeypatch):
    """No date, no chance and no global state of matplotlib in it."""
    monkeypatch.setattr(figures_map, "surface_pictures", lambda volume: None)
    assert render_html(full_data()) == render_html(full_data())


def test_uniform_views_have_density_one():
    """Uniform views give 1 everywhere; views along one axis pile up there, and symmetry repeats them."""
    rotation = random_rotations(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.eye(3, dtype=torch.float64)[None]
    uniform = view_density(rotation, group=one)
    assert abs(float(np.mean(uniform.picture)) - 1) < 0.05
    assert uniform.thin_share == 0.0
    assert uniform.highest < 2.0
    along = view_density(torch.eye(3, dtype=torch.float64).expand(200, 3, 3), group=one)
    assert along.highest > 20
    assert along.thin_share > 0.7
    assert along.picture[0].max() > 10 > 0.1 > along.picture[-1].max()
    six = view_density(torch.eye(3, dtype=torch.float64).expand(200, 3, 3), group=point_group("O"))
    assert float(six.picture[-1].max()) == pytest.approx(
        float(six.picture[0].max()), abs=10 * ROUND_OFF[torch.float32]
    )


def test_examples_must_pair():
    """Images and reprojections come in pairs; without the shape checker the message names the remedy."""
    with pytest.raises((BadInput, TypeCheckError)):
        ExampleImages(torch.zeros(3, 8, 8), torch.zeros(2, 8, 8))
