"""What the microscope and the electrons do to each frequency: run `python ctf_and_dose.py [figure.png]`."""

import sys
from pathlib import Path

import torch

from cryorbit.data import CTF
from cryorbit.physics.dose import critical_dose, dose_weights
from cryorbit.physics.envelopes import ewald_depth_limit_A, spatial_envelope, temporal_envelope
from cryorbit.physics.transfer import ctf_values
from cryorbit.report.style import BLUE, INK, MUTED, ORANGE, RED, SEQUENTIAL, TEAL, figure, house_style

DEFOCUS_A = 12000.0


def main(path: Path) -> None:
    """Above: the CTF under its envelopes. Below: critical dose, the weights of 40 frames, and where slices curve."""
    k = torch.linspace(0.0, 0.45, 1500, dtype=torch.float64)
    ctf = ctf_values(CTF.uniform(1, defocus_A=DEFOCUS_A), torch.stack([k, torch.zeros_like(k)], -1))[0]
    temporal = temporal_envelope(k, focal_spread_A=60.0)
    spatial = spatial_envelope(k, semi_angle_mrad=0.12, defocus_A=DEFOCUS_A)
    dose = torch.arange(1.0, 41.0, dtype=torch.float64)
    with house_style():
        fig = figure(10.0, 5.8)
        panels = fig.subplot_mosaic([["ctf", "ctf", "ctf"], ["dose", "weights", "ewald"]])
        axes = panels["ctf"]
        axes.plot(
            k, ctf, color=MUTED, linewidth=0.7, alpha=0.7, label=f"CTF, {DEFOCUS_A / 1e4:g} µm underfocus"
        )
        axes.plot(k, ctf * temporal * spatial, color=BLUE, linewidth=1.1, label="with both envelopes")
        axes.plot(k, temporal, color=ORANGE, label="temporal: focus spreads by 60 Å")
        axes.plot(k, spatial, color=TEAL, label="spatial: beam of 0.12 mrad")
        axes.set(xlim=(0, 0.45), ylim=(-1.05, 1.05), xlabel="spatial frequency, 1/Å")
        axes.set_title("Contrast transfer at 300 kV")
        axes.legend(
            ncols=2, loc="lower left", facecolor="white", frameon=True, edgecolor="none", framealpha=0.85
        )
        resolution = torch.linspace(2.0, 20.0, 200, dtype=torch.float64)
        for voltage, colour in ((300.0, BLUE), (200.0, ORANGE)):
            panels["dose"].plot(
                resolution,
                critical_dose(1 / resolution, voltage_kV=voltage),
                color=colour,
                label=f"{voltage:g} kV",
            )
        panels["dose"].set(xlabel="resolution, Å", ylabel="electrons / Å²", ylim=(0, None))
        panels["dose"].set_title("Dose that leaves 1/e of the power")
        panels["dose"].legend()
        weights = dose_weights(k[k > 0.01], dose)
        shown = panels["weights"].imshow(
            weights.numpy(),
            cmap=SEQUENTIAL,
            aspect="auto",
            origin="lower",
            extent=(0.01, 0.45, 0.5, 40.5),
            vmin=0,
        )
        fig.colorbar(shown, ax=panels["weights"], label="weight")
        panels["weights"].set(xlabel="spatial frequency, 1/Å", ylabel="frame (1 e/Å² each)")
        panels["weights"].set_title("Weights of 40 frames")
        panels["weights"].grid(visible=False)
        thickness = torch.linspace(50, 1500, 100)
        for voltage, colour in ((100.0, RED), (200.0, ORANGE), (300.0, BLUE)):
            limit = [ewald_depth_limit_A(t, voltage_kV=voltage) for t in thickness.tolist()]
            panels["ewald"].plot(thickness, limit, color=colour, label=f"{voltage:g} kV")
        panels["ewald"].set(xlabel="particle's diameter, Å", ylabel="resolution, Å", ylim=(0, None))
        panels["ewald"].set_title("Finer than this, slices curve", color=INK)
        panels["ewald"].legend()
        fig.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "ctf_and_dose.png"))
