"""One orientation in the words of every program: run `python conventions.py [figure.png]`."""

import sys
from pathlib import Path

import torch

from cryorbit.geometry.transform import Transform
from cryorbit.report.style import BLUE, GREEN, INK, MUTED, ORANGE, bare, figure, house_style


def main(path: Path) -> None:
    """The particle's axes as the image shows them, beside the numbers that say so."""
    move = Transform.from_spider(torch.tensor([30.0, 60.0, 45.0], dtype=torch.float64))
    words = {
        "SPIDER, RELION  (φ, θ, ψ)": move.to_spider(),
        "EMAN2, IMAGIC  (az, alt, φ)": move.to_eman(),
        "MRC  (φ, θ, ω)": move.to_mrc(),
        "xyz  (xtilt, ytilt, ztilt)": move.to_xyz(),
        "spin  (Ω, axis)": torch.cat([move.to_spin()[0][None], move.to_spin()[1]]),
        "spinvec  (turns)": move.to_spinvec(),
        "quaternion  (e0 ... e3)": move.to_quaternion(),
    }
    with house_style():
        fig = figure(9.0, 3.8)
        left, right = fig.subplots(1, 2, width_ratios=[1, 1.5])
        # Column i of the matrix is where the particle's axis i is seen: x and y in the image, z towards the viewer.
        turn = torch.linspace(0, 2 * torch.pi, 200)
        left.plot(turn.cos(), turn.sin(), color=MUTED, linewidth=0.8)
        for name, column, colour in zip("xyz", move.rotation.T, (BLUE, ORANGE, GREEN), strict=True):
            x, y, z = column.tolist()
            left.annotate(
                "", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.6 + 1.6 * z}
            )
            left.text(1.13 * x, 1.13 * y, name, color=colour, ha="center", va="center", fontweight="bold")
        left.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
        left.set_title("The particle's axes in the image\n(thicker: towards the viewer)")
        bare(left)
        bare(right)
        right.set_title("The same, in numbers")
        for row, (name, values) in enumerate(words.items()):
            y = 0.9 - 0.135 * row
            text = "   ".join(f"{value:9.4f}" for value in values.tolist())
            right.text(0.0, y, name, color=INK, transform=right.transAxes, va="center")
            right.text(
                1.0,
                y,
                text,
                color=BLUE,
                transform=right.transAxes,
                va="center",
                ha="right",
                family="monospace",
                size=8,
            )
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "conventions.png"))
