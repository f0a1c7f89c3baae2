"""Six means of rotations, and which of them outliers move: run `python averaging.py [figure.png]`."""

import sys
from pathlib import Path

import torch

from cryorbit.geometry.averaging import average
from cryorbit.geometry.rotations import (
    axis_rotation,
    geodesic_angle,
    matrix_to_rotvec,
    random_rotations,
    rotvec_to_matrix,
)
from cryorbit.report.style import BLUE, INK, MUTED, ORANGE, TEAL, figure, house_style

COLOURS = {"geodesic": BLUE, "chordal": ORANGE, "quaternion": TEAL}


def errors_deg(metric: str, p: int, wrong: int, *, draws: int = 30) -> float:
    """Median error of the mean of 20 rotations near the truth, `wrong` of them replaced by random ones."""
    generator = torch.Generator().manual_seed(wrong)
    noise = rotvec_to_matrix(0.05 * torch.randn(draws, 20, 3, generator=generator, dtype=torch.float64))
    noise[:, :wrong] = random_rotations(draws * wrong, generator=generator, dtype=torch.float64).reshape(
        draws, wrong, 3, 3
    )
    found = average(noise, metric=metric, p=p)
    return float(torch.rad2deg(geodesic_angle(found, torch.eye(3, dtype=torch.float64))).median())


def main(path: Path) -> None:
    """Left: 0, 10 and 50 degrees about one axis have a different mean in every metric. Right: outliers."""
    turns = torch.tensor([0.0, 10.0, 50.0], dtype=torch.float64)
    cloud = axis_rotation("z", torch.deg2rad(turns))
    wrong = range(0, 9)
    with house_style():
        fig = figure(9.0, 3.6)
        left, right = fig.subplots(1, 2, width_ratios=[1, 1.3])
        left.scatter(turns, torch.zeros(3), s=90, color=INK, zorder=3)
        left.text(25, -0.12, "the three rotations", ha="center", va="top", color=MUTED, fontsize=9)
        for row, (metric, colour) in enumerate(COLOURS.items()):
            for p in (1, 2):
                mean = float(torch.rad2deg(matrix_to_rotvec(average(cloud, metric=metric, p=p))[2]))
                y = 0.35 + 0.3 * (2 * row + p - 1)
                left.plot([mean, mean], [0.0, y], color=colour, linewidth=0.8, alpha=0.5)
                left.scatter([mean], [y], color=colour, marker="o" if p == 2 else "D", zorder=3)
                left.text(mean + 1.5, y, f"{metric} L{p}: {mean:.2f}°", va="center", color=colour, fontsize=9)
        left.set(yticks=[], ylim=(-0.35, 2.2), xlim=(-3, 55), xlabel="angle about the axis, degrees")
        left.set_title("Six means of three turns")
        for metric, colour in COLOURS.items():
            for p in (1, 2):
                curve = [errors_deg(metric, p, k) for k in wrong]
                style = "-" if p == 1 else ":"
                right.plot(wrong, curve, style, color=colour, label=f"{metric} L{p}")
        right.set(
            xlabel="random ones among 20 rotations", ylabel="error of the mean, degrees", ylim=(0.5, None)
        )
        right.set_yscale("log")
        right.set_title("L1 (solid) resists outliers, L2 (dotted) does not")
        right.legend(ncols=3, fontsize=8)
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "averaging.png"))
