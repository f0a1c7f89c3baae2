"""Distances that know how far things moved: run `python wasserstein.py [figure.png]`."""

import sys
from pathlib import Path

import torch

from cryorbit.analysis.transport import bures_squared, sinkhorn, sliced_wasserstein
from cryorbit.report.style import BLUE, MUTED, ORANGE, RED, TEAL, bare, figure, house_style

F64 = torch.float64


def blob(shift: float, turn_deg: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of an elongated Gaussian."""
    angle = torch.deg2rad(torch.tensor(turn_deg, dtype=F64))
    r = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    return torch.tensor([shift, 0.0], dtype=F64), r @ torch.diag(torch.tensor([2.0, 0.5], dtype=F64)) @ r.T


def overlap_distance(shift: float) -> float:
    """L2 distance of the two densities, relative to that of far apart ones: 1 - exp(-d^2 / 4 s^2), s^2 = 2."""
    return float((2 - 2 * torch.exp(torch.tensor(-(shift**2) / 8))).sqrt() / 2**0.5)


def main(path: Path) -> None:
    """Left: a blob that moves. Middle: one that turns. Right: a transport plan between two shapes."""
    generator = torch.Generator().manual_seed(0)
    shifts = torch.linspace(0, 10, 60).tolist()
    angle = torch.arange(32, dtype=F64) * torch.pi / 32
    directions = torch.stack([angle.cos(), angle.sin()], -1)
    points = torch.randn(200, 2, generator=generator, dtype=F64) * torch.tensor([2.0, 0.5], dtype=F64).sqrt()
    with house_style():
        fig = figure(11.0, 3.5)
        left, middle, right = fig.subplots(1, 3)
        transport = [float(bures_squared(*blob(0.0), *blob(s)).sqrt()) for s in shifts]
        moved = [points + torch.tensor([s, 0.0]) for s in shifts]
        sliced = [float((2 * sliced_wasserstein(points, there, directions)).sqrt()) for there in moved]
        left.plot(shifts, transport, color=BLUE, linewidth=4, alpha=0.4, label="Wasserstein (Bures)")
        left.plot(shifts, sliced, color=TEAL, linestyle="--", label="sliced, × √2")
        left.plot(
            shifts, [10 * overlap_distance(s) for s in shifts], color=RED, label="L2 of densities, scaled"
        )
        left.set(xlabel="shift", ylabel="distance")
        left.set_title("L2 is blind once nothing overlaps")
        left.legend()
        turns = torch.linspace(0, 180, 91).tolist()
        turned = [float(bures_squared(*blob(0.0), *blob(0.0, t))) for t in turns]
        middle.plot(turns, turned, color=ORANGE)
        for t in (0.0, 45.0, 90.0):
            value = float(bures_squared(*blob(0.0), *blob(0.0, t)))
            middle.scatter([t], [value], color=ORANGE, zorder=3)
            middle.annotate(f"{value:.4f}", (t, value), (8, -4), textcoords="offset points", fontsize=9)
        middle.set(xlabel="turn, degrees", ylabel="W₂²", xticks=range(0, 181, 45), ylim=(-0.05, 1.15))
        middle.set_title("An ellipse against itself, turned")
        angle = torch.rand(70, generator=generator, dtype=F64) * 2 * torch.pi
        ring = torch.stack([angle.cos(), angle.sin()], -1) * 2.2
        ring = ring + 0.12 * torch.randn(70, 2, generator=generator, dtype=F64)
        pair = torch.randn(70, 2, generator=generator, dtype=F64) * 0.35 + torch.tensor([6.5, 0.0])
        pair[::2, 1] += 1.6
        pair[1::2, 1] -= 1.6
        plan = sinkhorn(torch.cdist(ring, pair) ** 2, epsilon=0.1)
        for i, j in enumerate(plan.argmax(1).tolist()):
            right.plot(*zip(ring[i], pair[j], strict=True), color=MUTED, linewidth=0.6, alpha=0.6)
        right.scatter(*ring.T, color=BLUE, s=14, zorder=3)
        right.scatter(*pair.T, color=ORANGE, s=14, zorder=3)
        right.set(aspect="equal")
        right.set_title("Where mass goes: ring to pair")
        bare(right)
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "wasserstein.png"))
