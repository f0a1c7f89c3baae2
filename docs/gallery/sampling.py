"""Even directions, even rotations, and how well each set covers SO(3): run `python sampling.py [figure.png]`."""

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes

from cryorbit.geometry.directions import (
    fibonacci_directions,
    ring_directions,
    saff_directions,
    super_fibonacci,
)
from cryorbit.geometry.distance import angle_to_nearest
from cryorbit.geometry.rotations import euler_to_matrix, random_rotations
from cryorbit.geometry.so3_grid import healpix_directions, so3_grid
from cryorbit.report.style import BLUE, MUTED, ORANGE, RED, RULE, TEAL, bare, figure, house_style

F64 = torch.float64


def ball(axes: Axes, directions: torch.Tensor, name: str) -> None:
    """The northern half of a set of directions, seen from a little below the pole."""
    seen = directions @ euler_to_matrix(torch.tensor([0.0, 55.0, 0.0], dtype=F64)).mT
    front = seen[seen[:, 2] > 0]
    turn = torch.linspace(0, 2 * torch.pi, 200)
    axes.fill(turn.cos(), turn.sin(), color=RULE, alpha=0.35)
    axes.scatter(front[:, 0], front[:, 1], s=2 + 8 * front[:, 2], color=BLUE, linewidths=0)
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    axes.set_title(f"{name}\n{len(directions)} directions", fontsize=9.5)
    bare(axes)


def main(path: Path) -> None:
    """Above: directions. Below: largest angle from any rotation to the nearest of n."""
    probes = random_rotations(3000, generator=torch.Generator().manual_seed(0), dtype=F64)

    def covering(grid: torch.Tensor) -> tuple[int, float]:
        return len(grid), float(torch.rad2deg(angle_to_nearest(probes, grid)).max())

    counts = (72, 150, 300, 576, 1200, 2400, 4608)
    azimuths = {
        s: (torch.arange(0, 360, s, dtype=F64), torch.arange(-90, 91, s, dtype=F64)) for s in (60, 30, 20)
    }
    sets = {
        "random": [
            random_rotations(n, generator=torch.Generator().manual_seed(n), dtype=F64) for n in counts
        ],
        "Euler angles in equal steps": [
            euler_to_matrix(torch.cartesian_prod(a, b, a), convention="ZYX") for a, b in azimuths.values()
        ],
        "super-Fibonacci": [super_fibonacci(n) for n in counts],
        "HEALPix x in-plane": [so3_grid(order, dtype=F64).flatten(0, 1) for order in (0, 1, 2)],
    }
    with house_style():
        fig = figure(9.0, 5.8)
        panels = fig.subplot_mosaic([["a", "b", "c", "d"], ["e"] * 4], height_ratios=[1, 1.15])
        ball(panels["a"], ring_directions(7.5), "Rings, 7.5°")
        ball(panels["b"], saff_directions(746), "Saff-Kuijlaars spiral")
        ball(panels["c"], fibonacci_directions(746), "Fibonacci spiral")
        ball(panels["d"], healpix_directions(3), "HEALPix, order 3")
        for (name, grids), colour in zip(sets.items(), (MUTED, RED, TEAL, ORANGE), strict=True):
            n, angle = zip(*[covering(grid) for grid in grids], strict=True)
            panels["e"].loglog(n, angle, "o-", color=colour, label=name, markersize=4.5)
        panels["e"].set(xlabel="rotations in the set", ylabel="covering radius, degrees")
        panels["e"].set_title("How far a rotation can be from the nearest one")
        panels["e"].set_yticks([10, 15, 20, 30, 50, 80], [f"{t}" for t in (10, 15, 20, 30, 50, 80)])
        panels["e"].minorticks_off()
        panels["e"].legend()
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "sampling.png"))
