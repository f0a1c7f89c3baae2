"""Two states of a protein with a moved domain, superposed twice: run `python superposition.py [figure.png]`."""

import sys
from pathlib import Path

import torch

from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.geometry.superpose import kabsch
from cryorbit.geometry.superpose_bayes import superpose_bayes
from cryorbit.report.style import BLUE, INK, MUTED, ORANGE, figure, house_style

DOMAIN = slice(90, 140)


def coil(n: int, *, turns: int, centre: float, size: float) -> torch.Tensor:
    """A chain of n residues wound around a ring, in angstrom."""
    t = torch.arange(n, dtype=torch.float64) / n * 2 * torch.pi
    radius = size * (1 + 0.35 * torch.cos(turns * t))
    return torch.stack([centre - radius * t.cos(), radius * t.sin(), 0.35 * size * torch.sin(turns * t)], -1)


def two_states() -> tuple[torch.Tensor, torch.Tensor]:
    """Two domains; in state two the second is turned by 35 degrees about a hinge, and all is blurred."""
    generator = torch.Generator().manual_seed(7)
    first = torch.cat([coil(90, turns=9, centre=0.0, size=-20.0), coil(50, turns=6, centre=42.0, size=12.0)])
    second = first.clone()
    hinge, turn = first[DOMAIN.start], rotvec_to_matrix(torch.tensor([0.0, 0.0, 0.61], dtype=torch.float64))
    second[DOMAIN] = (first[DOMAIN] - hinge) @ turn.mT + hinge
    return first, second + 0.35 * torch.randn(140, 3, generator=generator, dtype=torch.float64)


def main(path: Path) -> None:
    """Above: both superpositions from one side. Below: what is left of each residue, and the inferred spread."""
    first, second = two_states()
    plain, bayes = kabsch(second, first), superpose_bayes(second, first)
    residue = torch.arange(140)
    with house_style():
        fig = figure(9.0, 6.0)
        panels = fig.subplot_mosaic([["kabsch", "bayes"], ["left", "left"]], height_ratios=[1.3, 1])
        for name, motion in (("kabsch", plain), ("bayes", bayes.motion)):
            axes, moved = panels[name], motion.apply(second)
            axes.plot(first[:, 0], first[:, 1], color=MUTED, linewidth=2.4, alpha=0.55, label="state one")
            axes.plot(moved[:, 0], moved[:, 1], color=BLUE if name == "bayes" else ORANGE, linewidth=1.2)
            core = ((moved - first)[: DOMAIN.start] ** 2).sum(1).mean().sqrt()
            title = "Least squares" if name == "kabsch" else "Spread per residue"
            axes.set_title(f"{title}: the core is off by {core:.2f} Å")
            axes.set(aspect="equal", xlabel="x, Å", ylabel="y, Å")
        for motion, colour, name in (
            (plain, ORANGE, "least squares"),
            (bayes.motion, BLUE, "spread per residue"),
        ):
            panels["left"].semilogy(
                residue, (motion.apply(second) - first).norm(dim=1), color=colour, label=name
            )
        panels["left"].semilogy(residue, bayes.sigma, color=INK, linestyle=":", label="inferred spread σ")
        panels["left"].axvspan(DOMAIN.start, DOMAIN.stop, color=MUTED, alpha=0.12)
        panels["left"].set(
            xlabel="residue (grey: the domain that moved)", ylabel="displacement, Å", xlim=(0, 139)
        )
        panels["left"].legend(ncols=3, loc="upper left")
        panels["left"].set_ylim(0.08, 120)
        panels["left"].set_title("What is left of each residue")
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "superposition.png"))
