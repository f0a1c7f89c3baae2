"""`cryorbit simulate MODEL_OR_MAP -o DIR`: a particle stack whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat, to_yaml
from cryorbit.cli.options import ConfigOptions, OutFolder, set_threads
from cryorbit.cli.progress import say
from cryorbit.physics.simulate import SimulationSettings

if TYPE_CHECKING:
    from cryorbit.data import CTF, Atoms, Volume
    from cryorbit.physics.simulate import Simulation

MAP_ENDINGS = (".mrc", ".map", ".ccp4")
SYNTHETIC = "synthetic"
OUTPUTS = ("particles.star", "particles.mrcs", "truth.star", "truth.mrc")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Simulate images of a structure or a map: DIR/particles.star particles.mrcs truth.star truth.mrc."""

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL_OR_MAP")]]
    """A PDB or mmCIF file, an MRC map, or the word `synthetic` for a made-up complex of 500 kDa."""
    out: OutFolder
    """Folder for the simulated files."""
    assembly: str | None = None
    """Biological assembly to build from the structure file, by its name there."""
    ctf_from: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw CTF parameters from this file (STAR, .cs or cryoDRGN ctf.pkl) instead of from --defocus-um."""
    simulation: Annotated[SimulationSettings, Flat] = field(default_factory=SimulationSettings)
    threads: int | None = None
    """CPU threads; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Simulate and write."""
    from cryorbit.cli.run_folder import OF_A_RUN, refuse_occupied

    refuse_occupied(settings.out, (*OF_A_RUN, *OUTPUTS))
    set_threads(settings.threads)
    model = read_model(settings.model, assembly=settings.assembly)
    table = None if settings.ctf_from is None else read_ctf_table(settings.ctf_from)
    write_simulation(settings.out, simulate_stack(model, settings.simulation, table), to_yaml(settings))
    return 0


def read_model(path: Path, *, assembly: str | None = None) -> Atoms | Volume:
    """A structure or a map, told apart by the name's ending (.gz and the like looked through).

    Raises
    ------
    BadFile, BadInput
        If it is neither, or cannot be read.
    """
    from cryorbit.io.atoms import read_atoms
    from cryorbit.io.mrc import read_map

    if str(path) == SYNTHETIC and not path.exists():
        return synthetic()
    if any(ending in MAP_ENDINGS for ending in path.suffixes[-2:]):
        return read_map(path)
    return read_atoms(path, assembly=assembly)


def synthetic() -> Atoms:
    """The made-up complex, always the same one."""
    import torch

    from cryorbit.physics.molecule import synthetic_complex

    return synthetic_complex(generator=torch.Generator().manual_seed(0))


def read_ctf_table(path: Path) -> CTF:
    """The CTF parameters of a particle file or a cryoDRGN table (gzipped or not).

    Raises
    ------
    BadFile
        If the file cannot be read or has none.
    """
    from cryorbit.io.cryodrgn import read_ctf_pickle
    from cryorbit.io.particles import read_particles, require_ctf

    if ".pkl" in path.suffixes:
        return read_ctf_pickle(path).ctf
    return require_ctf(read_particles(path, images="absent"))


def simulate_stack(model: Atoms | Volume, settings: SimulationSettings, table: CTF | None) -> Simulation:
    """The simulation; a line of its own so that the demo and the benchmark use the same."""
    from cryorbit.physics.simulate import simulate

    return simulate(model, settings, ctf_table=table)


def write_simulation(
    out: Path, simulation: Simulation, settings_yaml: str, *, settings_name: str = "settings.yaml"
) -> None:
    """Write stack, tables and truth; a failure takes back what was written.

    Raises
    ------
    BadFile
        If a file cannot be written.
    """
    from cryorbit.cli.outputs import making_folder
    from cryorbit.cli.run_folder import write_text
    from cryorbit.io.mrc import write_map
    from cryorbit.io.particles import write_images, write_particles

    stack = simulation.stack
    with making_folder(out, (*OUTPUTS, settings_name)):
        write_images(out / "particles.mrcs", stack)
        write_map(out / "truth.mrc", simulation.volume)
        write_particles(out / "truth.star", simulation.with_truth())
        write_particles(out / "particles.star", stack)
        write_text(out / settings_name, settings_yaml)
    say(f"{out}: {len(stack)} particles, box {stack.box}, {stack.pixel_size_A:g} A/px")
