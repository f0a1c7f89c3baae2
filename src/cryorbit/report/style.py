"""How figures look: colours, type, and their way into the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patheffects import withStroke

INK, MUTED, RULE, PALE = "#1c2733", "#64748b", "#dbe2ea", "#f4f7fa"
BLUE, ORANGE, GREEN, RED, VIOLET, TEAL = "#1f5f99", "#d9822b", "#2e7d5b", "#b83a32", "#6b4fa0", "#2a8c8c"
CYCLE = (BLUE, ORANGE, TEAL, VIOLET, GREEN, RED)

SEQUENTIAL = LinearSegmentedColormap.from_list(
    "cryorbit", ["#f4f7fa", "#c6dbec", "#7fb0d6", "#3a7fb8", "#1f5f99", "#123a63"]
)

_RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa8b7",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=CYCLE),
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "cryorbit",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in our style, and leave matplotlib as it was found."""
    with matplotlib.rc_context(_RC):  # pyright: ignore[reportArgumentType]
        yield


def figure(width: float = 5.6, height: float = 3.5) -> Figure:
    """An empty figure, in inches; nothing global is touched."""
    return Figure(figsize=(width, height), layout="constrained")


def svg_address(fig: Figure) -> str:
    """The figure as a data: address, vector."""
    FigureCanvasSVG(fig)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def png_address(fig: Figure, *, dpi: int = 170) -> str:
    """The figure as a data: address, pixels."""
    FigureCanvasAgg(fig)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def picture_address(rgba: np.ndarray) -> str:
    """An array (h, w, 3 or 4) of values 0 to 1 as a data: address, pixel by pixel."""
    buffer = io.BytesIO()
    imsave(buffer, np.clip(rgba, 0.0, 1.0), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def bare(axes: Axes) -> None:
    """No ticks, no frame: for pictures."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def scale_bar(axes: Axes, *, length_A: float, pixel_size_A: float, box: int) -> None:
    """A bar of round length in the lower left corner of a picture."""
    width = length_A / pixel_size_A
    x, y = 0.05 * box, 0.93 * box
    dark = [withStroke(linewidth=2.4, foreground="black")]
    bar = [withStroke(linewidth=4.4, foreground="black")]
    axes.plot([x, x + width], [y, y], color="white", linewidth=2.6, solid_capstyle="butt", path_effects=bar)
    axes.text(
        x + width / 2,
        y - 0.02 * box,
        f"{length_A:.0f} Å",
        color="white",
        ha="center",
        va="bottom",
        fontsize=9,
        path_effects=dark,
    )


def round_length_A(edge_A: float) -> float:
    """About a quarter of an edge, as 1, 2 or 5 times a power of ten.

    >>> round_length_A(384.0)
    50.0
    """
    target = edge_A / 4.0
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1.0, 2.0, 5.0) if step * power <= target * 1.0001))
