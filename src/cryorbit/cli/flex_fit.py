"""`cryorbit flex fit MAP -o gaussians.ply`: a map as 3D Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.map_files import MapFile
from cryorbit.cli.options import ConfigOptions, set_threads
from cryorbit.errors import BadInput
from cryorbit.inference.gaussian_fit import GaussianFitSettings

if TYPE_CHECKING:
    from cryorbit.data import Gaussians, Volume

CFG = "cfg.json"
_ENDINGS = (".ply", ".safetensors", ".pdb", ".cif")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Describe a map by Gaussians: .ply (GaussianEM's layout, cfg.json beside it), .safetensors, or pseudo-atoms."""

    map: tyro.conf.Positional[MapFile]
    """Map to describe."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT.ply")]
    """File to write; its ending, .ply, .safetensors, .pdb or .cif, says in which format."""
    fit: Annotated[GaussianFitSettings, Flat] = field(default_factory=GaussianFitSettings)
    header_pixel_size_A: float | None = None
    """Pixel size of the map, where the header has none or a wrong one."""
    overwrite: bool = False
    """Replace the output if it is there."""
    threads: int | None = None
    """CPU threads; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Fit and write; exit code 1 if the wanted resolution was not reached."""
    from cryorbit.cli.outputs import refuse_existing
    from cryorbit.cli.progress import Teller, say
    from cryorbit.inference.gaussian_fit import fit_gaussians
    from cryorbit.io.mrc import read_map

    out = settings.out
    if out.suffix.lower() not in _ENDINGS:
        raise BadInput(f"{out}: no known format. Give a name that ends in {', '.join(_ENDINGS)}.")
    refuse_existing(out, overwrite=settings.overwrite)
    if out.suffix.lower() == ".ply":
        refuse_existing(out.with_name(CFG), overwrite=settings.overwrite)
    set_threads(settings.threads)
    volume = read_map(settings.map, pixel_size_A=settings.header_pixel_size_A, to_cube="pad")
    found = None
    with Teller() as teller:
        for record in fit_gaussians(volume, settings.fit):
            teller.tell(record)
            found = record.result
    assert found is not None  # the last record carries it
    write_fit(out, found.gaussians, volume)
    wanted = settings.fit.resolution_A or 3 * volume.pixel_size_A
    say(
        f"{out}: {len(found.gaussians)} Gaussians, FSC {settings.fit.fsc:g} with the map to {found.resolution_A:.2f} A"
    )
    if not found.reached:
        say(
            f"The {wanted:.2f} A asked for were not reached with {settings.fit.most} Gaussians: raise --most, or ask for a "
            "coarser --resolution-A."
        )
    return 0 if found.reached else 1


def write_fit(path: Path, gaussians: Gaussians, volume: Volume) -> None:
    """Gaussians in the format of the file's ending; pseudo-atoms lie where viewers place the map.

    Raises
    ------
    BadInput
        If the format cannot hold a number.
    BadFile
        If the disk refuses.
    """
    from cryorbit.io.atoms import write_atoms
    from cryorbit.io.gaussians import save_gaussians
    from cryorbit.io.ply import GaussianEMFrame, write_gaussianem
    from cryorbit.physics.gaussian_atoms import gaussians_to_atoms

    pixel = volume.pixel_size_A
    kind = path.suffix.lower()
    if kind == ".safetensors":
        save_gaussians(path, gaussians, {"box": volume.box, "pixel_size_A": pixel})
    elif kind == ".ply":
        width = gaussians.width_A / pixel
        # A little outside of the widths that there are: the format cannot hold the bounds themselves.
        low, high = 0.9 * float(width.min()), 1.1 * float(width.max())
        frame = GaussianEMFrame(box=volume.box, pixel_size_A=pixel, least_px=low, most_px=high)
        write_gaussianem(path, path.with_name(CFG), gaussians, frame)
    else:
        atoms = gaussians_to_atoms(placed(gaussians, volume))
        write_atoms(path, atoms)


def placed(gaussians: Gaussians, volume: Volume) -> Gaussians:
    """The Gaussians where viewers show the map: counted from its first voxel's place, not from the particle's centre."""
    from dataclasses import replace

    import torch

    centre = torch.tensor(volume.place_A) + (volume.box // 2) * volume.pixel_size_A
    return replace(gaussians, position_A=gaussians.position_A + centre.to(gaussians.position_A))
