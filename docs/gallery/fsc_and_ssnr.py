"""What the FSC of two half maps says of their mean: run `python fsc_and_ssnr.py [figure.png]`."""

import sys
from pathlib import Path

import torch

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.ssnr import cref, ssnr
from cryorbit.data import Volume
from cryorbit.physics.molecule import synthetic_complex
from cryorbit.physics.scatter import atoms_to_density
from cryorbit.report.style import BLUE, INK, MUTED, ORANGE, TEAL, bare, figure, house_style

BOX, PIXEL_A = 64, 4.0


def main(path: Path) -> None:
    """A map, two copies of it with independent noise, and the curves: correlation, Cref, signal-to-noise."""
    atoms = synthetic_complex(generator=torch.Generator().manual_seed(1))
    truth = atoms_to_density(atoms, box=BOX, pixel_size_A=PIXEL_A, b_factor_A2=600.0)
    generator = torch.Generator().manual_seed(2)

    def noisy() -> Volume:
        noise = torch.randn(truth.values.shape, generator=generator)
        return Volume(truth.values + 0.5 * truth.values.std() * noise, PIXEL_A)

    one, two = noisy(), noisy()
    merged = Volume(0.5 * (one.values + two.values), PIXEL_A)
    half = fourier_shell_correlation(one, two)
    real = fourier_shell_correlation(merged, truth)
    k, last = half.frequency_per_A, float(half.frequency_per_A[-1])
    with house_style():
        fig = figure(10.5, 5.6)
        panels = fig.subplot_mosaic(
            [["truth", "half", "mean"], ["fsc", "fsc", "ssnr"]], height_ratios=[1, 1.35]
        )
        for name, volume, title in (
            ("truth", truth, "The map, one section"),
            ("half", one, "A half map"),
            ("mean", merged, "The mean of both"),
        ):
            top = float(truth.values[BOX // 2].max())
            panels[name].imshow(volume.values[BOX // 2].numpy(), cmap="gray", vmin=-0.3 * top, vmax=top)
            panels[name].set_title(title)
            bare(panels[name])
        axes = panels["fsc"]
        axes.plot(k, half.correlation, color=BLUE, label="FSC between the half maps")
        axes.plot(
            k,
            cref(half.correlation),
            color=ORANGE,
            linestyle="--",
            label="Cref: what it says of the mean map",
        )
        axes.plot(k, real.correlation, color=INK, linewidth=1.0, label="FSC of the mean map with the truth")
        for threshold, name in ((1 / 7, "0.143"), (0.5, "0.5")):
            axes.axhline(threshold, color=MUTED, linewidth=0.8, linestyle=":")
            axes.text(0.001, threshold + 0.015, name, color=MUTED, fontsize=8.5)
        limit = 1 / half.resolution_A(1 / 7)
        axes.axvline(limit, color=MUTED, linewidth=0.8)
        axes.text(limit, 1.0, f" {1 / limit:.1f} Å", color=INK, fontsize=9, va="top")
        axes.set(xlim=(0, last), ylim=(-0.1, 1.05), xlabel="spatial frequency, 1/Å", ylabel="correlation")
        axes.set_title("FSC = 1/7 between halves is 1/2 with the truth")
        axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.385))
        ratio = ssnr(half.correlation)
        panels["ssnr"].semilogy(k, ratio.clamp_min(1e-3), color=TEAL)
        panels["ssnr"].axhline(1 / 3, color=MUTED, linewidth=0.8, linestyle=":")
        panels["ssnr"].text(0.004, 0.1, "1/3, where FSC = 1/7", color=MUTED, fontsize=8.5)
        panels["ssnr"].set(ylim=(1e-2, None), xlim=(0, last), xlabel="spatial frequency, 1/Å")
        panels["ssnr"].set_title("Signal-to-noise of the mean")
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "fsc_and_ssnr.png"))
