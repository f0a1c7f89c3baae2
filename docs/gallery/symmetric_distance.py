"""Why poses of symmetric particles need a distance of their own: run `python symmetric_distance.py [figure.png]`."""

import sys
from pathlib import Path

import torch

from cryorbit.geometry.averaging import chordal_mean
from cryorbit.geometry.distance import symmetric_distance
from cryorbit.geometry.rotations import axis_rotation, random_rotations
from cryorbit.geometry.symmetry import point_group
from cryorbit.report.style import BLUE, CYCLE, ORANGE, figure, house_style

GROUPS = ("C1", "C3", "D4", "O")


def main(path: Path) -> None:
    """Left: distance along a turn about z. Middle: of random poses. Right: what naive regression would learn."""
    turn = torch.linspace(0, 360, 721, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    pairs = random_rotations(40000, generator=generator, dtype=torch.float64).reshape(2, -1, 3, 3)
    with house_style():
        fig = figure(11.0, 3.5)
        left, middle, right = fig.subplots(1, 3)
        for name, colour in zip(GROUPS, CYCLE, strict=False):
            along = symmetric_distance(axis_rotation("z", torch.deg2rad(turn)), eye, name)
            left.plot(turn, torch.rad2deg(along), "--" if name == "O" else "-", color=colour, label=name)
            apart = torch.rad2deg(symmetric_distance(pairs[0], pairs[1], name))
            middle.hist(
                apart.numpy(), bins=90, range=(0, 180), density=True, histtype="step", color=colour, lw=1.6
            )
            middle.axvline(float(apart.mean()), color=colour, linewidth=0.8, linestyle=":")
        left.set(
            xlabel="turn about z, degrees",
            ylabel="distance, degrees",
            xlim=(0, 360),
            xticks=range(0, 361, 90),
        )
        left.set_title("One pose has as many\nminima as turns about z")
        left.legend(ncols=2)
        middle.set(xlabel="distance of two random poses, degrees", yticks=[], xlim=(0, 180))
        middle.set_title("Chance level falls with\nthe group's order (dotted: mean)")
        # Each image of a C4 particle has four right answers. Labels drawn among them average to a wrong one; labels
        # brought into one asymmetric unit, or a loss with the symmetric distance, do not.
        group = point_group("C4")
        truth = pairs[0][:300]
        labels = truth[:, None] @ group[torch.randint(4, (300, 12), generator=generator)]
        labels = labels @ axis_rotation(
            "x", 0.03 * torch.randn(300, 12, generator=generator, dtype=torch.float64)
        )
        naive = symmetric_distance(chordal_mean(labels), truth, group)
        nearest = (
            (labels[:, :1, None].mT @ labels[:, :, None] @ group)
            .diagonal(dim1=-2, dim2=-1)
            .sum(-1)
            .argmax(-1)
        )
        unified = symmetric_distance(chordal_mean(labels @ group[nearest]), truth, group)
        bins = torch.linspace(0, 60, 31).numpy()
        right.hist(torch.rad2deg(naive).numpy(), bins=bins, color=ORANGE, alpha=0.8, label="mean of labels")
        right.hist(
            torch.rad2deg(unified).numpy(), bins=bins, color=BLUE, alpha=0.8, label="mean up to symmetry"
        )
        right.set(xlabel="error up to symmetry, degrees", ylabel="images of 300", yscale="log")
        right.set_title("12 labels per image of a C4\nparticle, averaged")
        right.legend()
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "symmetric_distance.png"))
