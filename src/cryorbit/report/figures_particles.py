"""Figures of the particles: where they look, how sure they are, how they were defocused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.patches import Ellipse
from torch import Tensor

from cryorbit.data import CTF
from cryorbit.report.style import (
    BLUE,
    INK,
    MUTED,
    SEQUENTIAL,
    TEAL,
    VIOLET,
    bare,
    figure,
    png_address,
    svg_address,
)

_THIN = 1.0 / 3.0
"""A direction is thinly covered if its density is below this share of the uniform one."""


_ENOUGH = 5000
"""So many directions, evenly taken from the list, fix a density that is smoothed over four degrees."""


@dataclass(frozen=True, eq=False)
class ViewDensity:
    """Density of viewing directions relative to a uniform distribution, on a Mollweide picture.

    Parameters
    ----------
    picture
        Shape (h, w); 1 is uniform; outside the ellipse the values of its rim.
    highest
        Largest density.
    thin_share
        Share of the sphere with less than a third of the uniform density, a view and its opposite together
        (they are mirror images of one another and tell the same).
    """

    picture: np.ndarray
    highest: float
    thin_share: float


def _smoothed(at: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Density at points of the sphere by a von Mises-Fisher kernel as wide as the data need; 1 is uniform."""
    n = len(direction)
    width = float(np.clip(1.3 * math.sqrt(4 * math.pi / n), math.radians(4), math.radians(15)))
    kappa = 1.0 / width**2
    points, centres = torch.from_numpy(at).float(), torch.from_numpy(direction).float()
    # One buffer for all pieces: fresh ones of 20 MB each fragment the heap (+570 MB with two threads).
    buffer, parts = torch.empty(1024, n), []
    for piece in points.split(1024):
        now = torch.mm(piece, centres.T, out=buffer[: len(piece)])
        parts.append(now.sub_(1.0).mul_(kappa).exp_().sum(1))
    norm = kappa / (2 * math.pi * (1 - math.exp(-2 * kappa)))
    return torch.cat(parts).double().numpy() * norm * 4 * math.pi / n


def _mollweide_pixels(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions under each pixel of a 2:1 picture, and which pixels lie in the ellipse; equal areas."""
    height = width // 2
    x = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :] * np.ones((height, 1))
    y = (1 - (np.arange(height) + 0.5) / height * 2)[:, None] * np.ones((1, width))
    inside = x**2 + y**2 < 1
    theta = np.arcsin(np.clip(y, -1, 1))
    latitude = np.arcsin(np.clip((2 * theta + np.sin(2 * theta)) / np.pi, -1, 1))
    longitude = np.pi * np.clip(x / np.maximum(np.cos(theta), 1e-9), -1.0, 1.0)
    direction = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], -1
    )
    return direction, inside


def view_density(rotation: Float[Tensor, "n 3 3"], *, group: Float[Tensor, "g 3 3"]) -> ViewDensity:
    """Density of the third rows of the rotations, repeated by the particle's symmetry."""
    views = rotation[:, 2].double().cpu()
    every = max(1, len(views) * len(group) // _ENOUGH)
    direction = torch.einsum("ni,gij->ngj", views[::every], group.double().cpu()).reshape(-1, 3).numpy()
    pixels, inside = _mollweide_pixels(220)
    picture = _smoothed(pixels.reshape(-1, 3), direction).reshape(inside.shape)
    some = pixels[inside][:: max(1, int(inside.sum()) // 3000)]
    both = 0.5 * (_smoothed(some, direction) + _smoothed(-some, direction))
    return ViewDensity(picture, float(picture.max()), float((both < _THIN).mean()))


def views_figure(density: ViewDensity) -> str:
    """Mollweide map of the density, with a net every 30 degrees."""
    fig = figure(6.0, 3.6)
    axes = fig.add_subplot()
    top = max(2.0, float(np.percentile(density.picture, 99.5)))
    shown = axes.imshow(
        density.picture, extent=(-2, 2, -1, 1), cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="bilinear"
    )
    bare(axes)
    shown.set_clip_path(Ellipse((0, 0), 4, 2, transform=axes.transData))
    for latitude in range(-60, 61, 30):
        theta = _auxiliary_angle(math.radians(latitude))
        edge = 2 * math.cos(theta)
        axes.plot([-edge, edge], [math.sin(theta)] * 2, color="white", linewidth=0.6)
    theta = np.linspace(-np.pi / 2, np.pi / 2, 90)
    for longitude in range(-120, 121, 60):
        axes.plot(longitude / 90 * np.cos(theta), np.sin(theta), color="white", linewidth=0.6)
    turn = np.linspace(0, 2 * np.pi, 200)
    axes.plot(2 * np.cos(turn), np.sin(turn), color=MUTED, linewidth=0.9)
    axes.text(0, 1.04, "tilt 0°", ha="center", va="bottom", fontsize=9, color=MUTED)
    axes.text(0, -1.04, "tilt 180°", ha="center", va="top", fontsize=9, color=MUTED)
    axes.set_xlim(-2.05, 2.05)
    axes.set_ylim(-1.18, 1.18)
    bar = fig.colorbar(shown, ax=axes, orientation="horizontal", fraction=0.05, pad=0.02, aspect=34)
    bar.set_label("Views per solid angle, uniform = 1", fontsize=9)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return png_address(fig, dpi=180)


def _auxiliary_angle(latitude: float) -> float:
    """Mollweide's theta of a latitude in radians, 2 theta + sin 2 theta = pi sin latitude, by Newton."""
    theta = latitude
    for _ in range(20):
        theta -= (2 * theta + math.sin(2 * theta) - math.pi * math.sin(latitude)) / (
            2 + 2 * math.cos(2 * theta)
        )
    return theta


def histogram_figure(
    values: Float[Tensor, "n"],
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    colour: str = BLUE,
    height: float = 2.2,
) -> str:
    """Histogram of one number per particle, its median marked."""
    numbers = values.double().cpu().numpy()
    numbers = numbers[np.isfinite(numbers)]
    fig = figure(4.8, height)
    axes = fig.add_subplot()
    if len(numbers):
        low, high = limits or tuple(np.percentile(numbers, [0.2, 99.8]))
        if high <= low:
            low, high = low - 0.5, high + 0.5
        axes.margins(y=0.16)
        axes.hist(np.clip(numbers, low, high), bins=44, range=(low, high), color=colour, alpha=0.85)
        median = float(np.median(numbers))
        axes.axvline(median, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
        right = median > low + 0.6 * (high - low)
        axes.annotate(
            f"median {median:.3g}",
            (median, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if right else 5, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            fontsize=9,
        )
        axes.set_xlim(low, high)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(label)
    axes.set_ylabel("Particles")
    return svg_address(fig)


def confidence_figure(confidence: Float[Tensor, "n"]) -> str:
    """How probable each particle's pose is."""
    return histogram_figure(confidence, label="Confidence of the pose", limits=(0.0, 1.0), colour=BLUE)


def entropy_figure(entropy: Float[Tensor, "n"]) -> str:
    """How widely each particle's posterior is spread."""
    return histogram_figure(entropy, label="Entropy of the pose (nats, 0 = nothing known)", colour=VIOLET)


def defocus_figure(ctf: CTF) -> str:
    """Mean underfocus of the particles."""
    mean_um = 0.5 * (ctf.defocus_u_A + ctf.defocus_v_A) * 1e-4
    return histogram_figure(mean_um, label="Underfocus (µm)", colour=TEAL, height=2.9)
