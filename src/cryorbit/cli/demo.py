"""`cryorbit demo`: the whole path on made-up data, from a structure to a judged map."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cryorbit.cli import abinitio, evaluate, simulate
from cryorbit.cli.config import Flat, to_yaml
from cryorbit.cli.network_panel import NETWORK
from cryorbit.cli.options import ComputeOptions, ConfigOptions, prepare
from cryorbit.cli.progress import clock, number, say
from cryorbit.errors import BadInput
from cryorbit.inference.abinitio_settings import AbinitioSettings
from cryorbit.physics.simulate import SimulationSettings

OUTPUTS = (*simulate.OUTPUTS, *abinitio.OUTPUTS, NETWORK, evaluate.EVALUATION)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Simulate a complex, find its map from nothing, judge it: DIR/evaluation.json, report.html and more."""

    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = Path("demo")
    """Folder for everything."""
    n_particles: int = 3000
    """Number of images."""
    box: int = 96
    """Edge of an image, pixels."""
    pixel_size_A: float = 4.0
    """Pixel size, angstrom."""
    snr: float = 0.1
    """Signal variance over noise variance."""
    shift_sd_A: float = 10.0
    """Standard deviation of the shifts per axis, angstrom."""
    seed: int = 0
    """Decides the data and the search."""
    compute: Annotated[ComputeOptions, Flat] = field(default_factory=ComputeOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Run the demo and print its verdict."""
    from cryorbit.cli.report import rebuild_report
    from cryorbit.cli.run_folder import OF_A_RUN, refuse_occupied, write_json

    out = settings.out.absolute()
    refuse_occupied(out, (*OF_A_RUN, *OUTPUTS))
    device = prepare(settings.compute)
    say("1/4  simulating")
    make_stack(settings, out)
    say("2/4  ab initio")
    search = abinitio.Settings(
        particles=out / "particles.star",
        out=out,
        inference=AbinitioSettings(seed=settings.seed, threads=settings.compute.threads or 0),
        device=settings.compute.device,
    )
    stack = abinitio.usable_particles(search)
    abinitio.run_in_folder(stack, search, device=device, outputs=())
    say("3/4  against the truth")
    judged = evaluate.Settings(run_dir=out, truth=out / "truth.star", truth_map=out / "truth.mrc")
    numbers = evaluate.finite(evaluate.evaluate(judged, device=device))
    write_json(out / evaluate.EVALUATION, numbers)
    say("4/4  a network learns the map")
    ask_network(settings, out)
    rebuild_report(out)
    print(verdict(json.loads((out / evaluate.EVALUATION).read_text()), out))
    return 0


def ask_network(settings: Settings, out: Path) -> None:
    """Keep what equivariant encoders say of the run's images; a map or images that they cannot use are no failure."""
    from cryorbit.cli.network_panel import read_by_network
    from cryorbit.cli.outputs import MAP, PARTICLES
    from cryorbit.cli.progress import Teller
    from cryorbit.io.mrc import read_map
    from cryorbit.io.particles import read_particles

    solved = read_particles(out / PARTICLES)
    try:
        with Teller() as teller:
            read_by_network(out, solved, read_map(out / MAP), seed=settings.seed, tell=teller.tell)
    except BadInput as error:
        say(f"warning: the report has no panel about the network: {error}")


def make_stack(settings: Settings, out: Path) -> None:
    """Simulate into the folder; the settings file that is left there is ab initio's."""
    simulation = SimulationSettings(
        n_particles=settings.n_particles,
        box=settings.box,
        pixel_size_A=settings.pixel_size_A,
        snr=settings.snr,
        shift_sd_A=settings.shift_sd_A,
        seed=settings.seed,
    )
    asked = simulate.Settings(model=Path(simulate.SYNTHETIC), out=out, simulation=simulation)
    made = simulate.simulate_stack(simulate.synthetic(), simulation, None)
    simulate.write_simulation(out, made, to_yaml(asked), settings_name="simulation.yaml")


def verdict(numbers: dict, out: Path) -> str:
    """What came of it, in words.

    >>> print(verdict({"mse": 0.01, "converged": True, "rotation_error_deg_median": 2.0}, Path("demo")))
    The map was found: pose error 0.01 (chance is 6, below 0.1 is right), median 2 degrees.
    Look at demo/report.html
    """
    found = "The map was found" if numbers["converged"] else "The map was NOT found"
    lines = [
        f"{found}: pose error {number(numbers['mse'])} (chance is 6, below 0.1 is right), "
        f"median {number(numbers['rotation_error_deg_median'])} degrees."
    ]
    if numbers.get("fsc05_truth_A") is not None:
        lines.append(f"Resolution against the truth (FSC 0.5): {numbers['fsc05_truth_A']:.1f} A")
        if numbers.get("oracle_fsc05_truth_A") is not None:
            lines[-1] += f"; with the true poses {numbers['oracle_fsc05_truth_A']:.1f} A"
    if numbers.get("seconds"):
        lines.append(f"Time for ab initio: {clock(numbers['seconds'])}")
    return "\n".join([*lines, f"Look at {out / 'report.html'}"])
