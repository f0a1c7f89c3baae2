"""Five distances between rotations, and the losses made of them: run `python metrics.py [figure.png]`."""

import sys
from pathlib import Path

import torch

from cryorbit.geometry.distance import distance
from cryorbit.geometry.rotations import axis_rotation
from cryorbit.report.style import BLUE, GREEN, INK, ORANGE, RED, TEAL, VIOLET, figure, house_style

NAMES = {
    "log_frobenius": ("√2 θ", VIOLET),
    "geodesic": ("θ", BLUE),
    "chordal": ("2√2 sin θ/2", ORANGE),
    "spectral": ("2 sin θ/2", TEAL),
    "quaternion": ("2 sin θ/4", GREEN),
}

NUDGE = {"geodesic": 0.13, "chordal": -0.16}  # so that labels do not touch


def main(path: Path) -> None:
    """Left: distance against angle. Right: squared, scaled to agree for small angles."""
    theta = torch.linspace(0, torch.pi, 181, dtype=torch.float64)
    turned, still = axis_rotation("z", theta), torch.eye(3, dtype=torch.float64)
    degrees = torch.rad2deg(theta)
    with house_style():
        fig = figure(9.0, 3.6)
        left, right = fig.subplots(1, 2)
        for kind, (formula, colour) in NAMES.items():
            d = distance(turned, still, kind=kind)
            left.plot(degrees, d, color=colour)
            label, high = f"{kind.replace('_', ' ')}\n{formula}", float(d[-1]) + NUDGE.get(kind, 0.0)
            left.text(183, high, label, color=colour, va="center", fontsize=8.5)
            slope = float(d[1] / theta[1])
            if kind in ("geodesic", "chordal", "quaternion"):
                right.plot(degrees, (d / slope) ** 2, color=colour, label=f"{kind}, squared")
        left.set(
            xlim=(0, 180),
            ylim=(0, 4.6),
            xticks=range(0, 181, 60),
            xlabel="angle θ, degrees",
            ylabel="distance",
        )
        left.set_title("Five distances of one angle")
        # The double cover: q and -q are one rotation, but a plain difference of quaternions does not know it.
        wrong = 4 * 4 * torch.cos(theta / 4) ** 2
        right.plot(degrees, wrong, color=RED, linestyle="--", label="|q - r|², wrong sign of q")
        right.set(xlim=(0, 180), ylim=(0, 17), xticks=range(0, 181, 60), xlabel="angle θ, degrees")
        right.set_ylabel("loss, θ² for small θ", color=INK)
        right.set_title("As losses: bounded ones forgive outliers")
        right.legend(loc="center left", bbox_to_anchor=(0.0, 0.62))
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "metrics.png"))
