"""A projection is a slice of the transform: run `python fourier_slice.py [figure.png]`."""

import sys
from pathlib import Path

import torch

from cryorbit.data import Pose
from cryorbit.fourier.centred import fft_centred
from cryorbit.geometry.conventions import relion_angles_to_matrix
from cryorbit.physics.molecule import synthetic_complex
from cryorbit.physics.project import prepare, project, slices
from cryorbit.physics.scatter import atoms_to_density
from cryorbit.report.style import BLUE, ORANGE, SEQUENTIAL, bare, figure, house_style, scale_bar

BOX, PIXEL_A = 64, 4.5


def main(path: Path) -> None:
    """One view of a synthetic molecule: its image, the image's transform, and the slice of the map's transform."""
    atoms = synthetic_complex(generator=torch.Generator().manual_seed(1))
    volume = atoms_to_density(atoms, box=BOX, pixel_size_A=PIXEL_A, b_factor_A2=4 * (2 * PIXEL_A) ** 2)
    pose = Pose(relion_angles_to_matrix(torch.tensor([[40.0, 65.0, 10.0]])), torch.zeros(1, 2))
    image = project(volume, pose)[0]
    # The slice comes in the layout of rfft2: columns from 0, rows in fftfreq order, zero frequency first.
    half = torch.fft.fftshift(slices(prepare(volume), pose.rotation)[0], dim=0)
    of_image = fft_centred(image.to(torch.complex64), (0, 1))[:, BOX // 2 :]
    of_map = half[:, : BOX // 2]
    ky, kx = torch.meshgrid(torch.arange(BOX) - BOX // 2, torch.arange(BOX // 2), indexing="ij")
    radius = torch.hypot(ky.double(), kx.double())
    shell = radius.round().long()

    def by_shell(values: torch.Tensor) -> torch.Tensor:
        inside = shell < BOX // 2
        total = torch.zeros(BOX // 2, dtype=torch.float64).index_add_(
            0, shell[inside], values.double()[inside]
        )
        return total

    cross = by_shell((of_image * of_map.conj()).real)
    norm = (by_shell(of_image.abs() ** 2) * by_shell(of_map.abs() ** 2)).sqrt()
    with house_style():
        fig = figure(11.0, 3.4)
        axes = fig.subplots(1, 4, width_ratios=[1, 0.52, 0.52, 1.25])
        axes[0].imshow(image.numpy(), cmap=SEQUENTIAL)
        scale_bar(axes[0], length_A=50.0, pixel_size_A=PIXEL_A, box=BOX)
        axes[0].set_title("Projection of the map")
        for panel, values, name in (
            (axes[1], of_image, "Its transform"),
            (axes[2], of_map, "Slice of the map's"),
        ):
            shown = torch.where(radius < BOX // 2, values.abs().clamp_min(1e-3).log10(), torch.nan)
            top = float(of_map.abs().max().log10())
            panel.imshow(shown.numpy(), cmap=SEQUENTIAL, vmin=top - 3.5, vmax=top)
            panel.set_title(name, fontsize=9.5)
        for panel in axes[:3]:
            bare(panel)
        frequency = torch.arange(BOX // 2) / (BOX * PIXEL_A)
        axes[3].plot(frequency, cross / norm, color=BLUE, label="correlation")
        power = by_shell(of_map.abs() ** 2).sqrt()
        axes[3].plot(frequency, power / power.max(), color=ORANGE, label="amplitude, relative")
        axes[3].set(xlabel="spatial frequency, 1/Å", ylim=(0, 1.05), xlim=(0, None))
        axes[3].set_title("Ring by ring they are the same")
        axes[3].legend(loc="center right")
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "fourier_slice.png"))
