"""Figures of postprocessing: Guinier plot, local resolution, correlation by direction."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Circle

from cryorbit.data import Volume
from cryorbit.fourier.resample import box_crop
from cryorbit.report.data import PostprocessReading
from cryorbit.report.figures_curves import resolution_ticks
from cryorbit.report.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    RED,
    TEAL,
    bare,
    figure,
    picture_address,
    png_address,
    round_length_A,
    scale_bar,
    svg_address,
)
from cryorbit.report.surface import Paint, render_surface

FINE_TO_COARSE = LinearSegmentedColormap.from_list(
    "resolution", ["#2b4fa2", "#2f8fc0", "#6cc0a0", "#e6d873", "#e8964a", "#b83a32"]
)
"""Blue is well resolved, red is poorly."""

_DISC_PX = 260
_SMOOTH_DEG = 9.0


def guinier_figure(reading: PostprocessReading) -> str:
    """ln(amplitude) over 1 / d^2: of the map, of its signal, of the signal when sharpened, and the line."""
    fig = figure(4.4, 3.9)
    axes = fig.add_subplot()
    x = reading.guinier["resolution_squared_per_A2"].numpy()
    original = reading.guinier["ln_amplitude"].numpy()
    weighted = reading.guinier["ln_amplitude_weighted"].numpy()
    b_factor = float(str(reading.facts["b_factor_A2"]))
    last = float(1.0 / float(str(reading.facts["resolution_0143_A"])) ** 2)
    end = min(1.35 * last, float(x[-1]))
    axes.plot(x, original, color=MUTED, linewidth=1.5, label="masked map")
    axes.plot(x, weighted, color=TEAL, label="its signal (FSC weighted)")
    sharpened = np.where(x <= last, weighted - 0.25 * b_factor * x, np.nan)
    if b_factor != 0:
        axes.plot(x, sharpened, color=BLUE, label=f"signal, sharpened by {b_factor:.0f} Å²", linewidth=2.2)
    fit = reading.facts.get("guinier_fit")
    if isinstance(fit, dict) and "fit" in reading.guinier:
        use = (x >= 1 / fit["from_A"] ** 2 * 0.999) & (x <= 1 / fit["to_A"] ** 2 * 1.001)
        line = reading.guinier["fit"].numpy()
        axes.plot(
            x[use], line[use], color=ORANGE, linewidth=2.2, linestyle=(0, (4, 2)), label="line of the fit"
        )
    axes.axvline(last, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlim(0, end)
    seen = (x <= end) & (x > 0)
    known = np.concatenate([v[seen & np.isfinite(v)] for v in (original, weighted, sharpened)])
    axes.set_ylim(known.min() - 0.5, known.max() + 0.5)
    _squared_ticks(axes, end)
    axes.set_ylabel("ln of amplitude")
    fig.legend(loc="outside upper left", ncols=1, handlelength=1.8)
    return svg_address(fig)


def _squared_ticks(axes: Axes, end: float) -> None:
    """Label an axis of 1 / d^2 by d."""
    places: list[float] = []
    for resolution in (50, 30, 20, 15, 12, 10, 9, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.8, 1.5, 1.2, 1):
        at = 1.0 / resolution**2
        if at <= end and at >= 0.04 * end and (not places or at - places[-1] > 0.09 * end):
            places.append(at)
    axes.set_xticks(places, [f"{p**-0.5:.3g}" for p in places])
    axes.set_xlabel("Resolution (Å), even in 1 / d²")


def resolution_range(local: Volume) -> tuple[float, float]:
    """Ends of the colours: nine tenths of the voxels lie between."""
    inside = local.values[local.values > 0].cpu().numpy()
    low, high = np.percentile(inside, [3, 97])
    return float(low), float(max(high, 1.02 * low))


def _edge_of(local: Volume) -> int:
    """Edge of the central cube that holds all measured voxels with a margin."""
    n = local.box
    reach = int((torch.nonzero(local.values > 0) - n // 2).abs().max())
    return min(n, 2 * round(1.15 * reach) + n % 2)


def local_sections_figure(reading: PostprocessReading) -> str:
    """Central sections of the sharpened map, coloured by local resolution within the mask, with a histogram."""
    assert reading.local is not None
    low, high = resolution_range(reading.local)
    norm = Normalize(low, high)
    edge = _edge_of(reading.local)
    density = box_crop(reading.map.values.float().cpu(), edge, ndim=3).numpy()
    local = box_crop(reading.local.values.float().cpu(), edge, ndim=3).numpy()
    middle = len(density) // 2
    dark, bright = np.percentile(density, [1.0, 99.8])
    fig = figure(9.6, 2.9)
    grid = fig.add_gridspec(1, 4, width_ratios=[1, 1, 1, 1.15])
    places = {"x, y": (middle,), "x, z": (slice(None), middle), "y, z": (slice(None), slice(None), middle)}
    for place, (name, at) in enumerate(places.items()):
        axes = fig.add_subplot(grid[0, place])
        grey = np.clip((density[at] - dark) / max(bright - dark, 1e-12), 0.0, 1.0)
        colour = FINE_TO_COARSE(norm(local[at]))[..., :3]
        share = np.where(local[at] > 0, 0.62, 0.0)[..., None]
        shown = grey[..., None] * (1 - share) + share * colour * (0.35 + 0.65 * grey[..., None])
        axes.imshow(np.clip(shown, 0, 1), interpolation="bilinear")
        axes.set_title(f"Section {name}")
        bare(axes)
        if place == 0:
            length = round_length_A(len(density) * reading.map.pixel_size_A)
            scale_bar(axes, length_A=length, pixel_size_A=reading.map.pixel_size_A, box=len(density))
    axes = fig.add_subplot(grid[0, 3])
    edges = np.linspace(low - 0.12 * (high - low), high + 0.25 * (high - low), 40)
    counts, _ = np.histogram(np.clip(local[local > 0], edges[0], edges[-1]), edges)
    centres = 0.5 * (edges[1:] + edges[:-1])
    axes.bar(
        centres,
        100 * counts / counts.sum(),
        width=1.02 * (edges[1] - edges[0]),
        color=FINE_TO_COARSE(norm(centres)),
    )
    axes.set_xlabel("Local resolution (Å)")
    axes.set_ylabel("% of the mask")
    axes.axvline(
        float(str(reading.facts["resolution_0143_A"])), color=INK, linewidth=1.0, linestyle=(0, (4, 3))
    )
    return png_address(fig)


def local_surface(reading: PostprocessReading) -> tuple[dict[str, str], float, float] | None:
    """Views of the sharpened map coloured by local resolution; the density of the surface, the width in angstrom."""
    assert reading.local is not None
    low, high = resolution_range(reading.local)
    colours = FINE_TO_COARSE(np.linspace(0, 1, 32))[:, :3]
    within = Volume(reading.map.values * reading.mask.values, reading.map.pixel_size_A)
    surface = render_surface(within, paint=Paint(reading.local, low, high, colours))
    if surface is None:
        return None
    return {k: picture_address(v) for k, v in surface.pictures.items()}, surface.level, surface.edge_A


def cone_curves_figure(reading: PostprocessReading) -> str:
    """The corrected FSC of every cone: all as a band, the middle half darker, best and worst as lines."""
    fig = figure(4.4, 3.9)
    axes = fig.add_subplot()
    frequency, curves = reading.frequency_per_A.numpy(), reading.cone_correlation.numpy()
    ranks = np.percentile(curves, [0, 25, 50, 75, 100], axis=0)
    start = slice(1, None)
    axes.fill_between(
        frequency[start],
        ranks[0][start],
        ranks[4][start],
        color=BLUE,
        alpha=0.13,
        linewidth=0,
        label="all cones",
    )
    axes.fill_between(
        frequency[start],
        ranks[1][start],
        ranks[3][start],
        color=BLUE,
        alpha=0.30,
        linewidth=0,
        label="middle half",
    )
    order = reading.cone_resolution_A.argsort()
    for index, colour, name in ((order[0], TEAL, "best axis"), (order[-1], RED, "worst axis")):
        axes.plot(frequency[start], curves[int(index)][start], color=colour, linewidth=1.4, label=name)
    axes.plot(frequency[start], ranks[2][start], color=BLUE, linewidth=2.2, label="median")
    axes.axhline(0.143, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.axhline(0.0, color=INK, linewidth=0.7)
    axes.set_ylim(-0.12, 1.04)
    axes.set_ylabel("Correlation in a cone")
    resolution_ticks(axes, float(frequency[-1]))
    fig.legend(loc="outside upper left", ncols=2, columnspacing=1.4, handlelength=1.8)
    return svg_address(fig)


def cone_sphere_figure(reading: PostprocessReading) -> str:
    """Resolution by direction on half the sphere, seen from +z in Lambert's equal-area map."""
    axis = reading.cone_axis.double()
    resolution = reading.cone_resolution_A.double()
    worst = resolution[torch.isfinite(resolution)].max() if bool(torch.isfinite(resolution).any()) else 1.0
    reach = 1.0 / torch.where(torch.isfinite(resolution), resolution, 2.0 * worst)
    y, x = np.mgrid[1 : -1 : _DISC_PX * 1j, -1 : 1 : _DISC_PX * 1j]
    r2 = x**2 + y**2
    # Lambert: a point at radius r of the unit disc is the direction with z = 1 - r^2.
    side = np.sqrt(np.clip(2 - r2, 0, None))
    direction = torch.from_numpy(np.stack([x * side, y * side, 1 - r2], -1))
    cosine = (direction @ axis.T).abs().clamp(max=1.0)
    weight = torch.exp(-0.5 * (torch.rad2deg(torch.arccos(cosine)) / _SMOOTH_DEG) ** 2)
    shown = (1.0 / ((weight @ reach) / weight.sum(-1).clamp_min(1e-12))).numpy()
    shown[r2 > 1] = np.nan
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    norm = Normalize(low, max(high, 1.05 * low))
    fig = figure(4.4, 3.9)
    axes = fig.add_subplot()
    axes.imshow(shown, cmap=FINE_TO_COARSE, norm=norm, extent=(-1, 1, -1, 1), interpolation="bilinear")
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=INK, linewidth=1.0))
    for name, right, up in (("x", 1.08, 0.0), ("y", 0.0, 1.08)):
        axes.text(right, up, name, ha="center", va="center", color=INK)
    axes.plot([0], [0], "+", color="white", markersize=9)
    axes.text(0.05, 0.05, "z", color="white")
    axes.set_xlim(-1.15, 1.15)
    axes.set_ylim(-1.1, 1.15)
    bare(axes)
    fig.colorbar(ScalarMappable(norm, FINE_TO_COARSE), ax=axes, label="Resolution (Å)", shrink=0.8)
    return png_address(fig)
