"""`cryorbit flex reconstruct DIR`: one sharper map of all images, each added along the way its molecule bent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions, set_threads
from cryorbit.cli.reading import ImageOptions
from cryorbit.errors import BadFile

if TYPE_CHECKING:
    from torch import Tensor

    from cryorbit.data import ParticleStack
    from cryorbit.inference.flex import FlexResult

_FACTS = "deformed.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Take the motion out of a flex run's images: OUT/map.mrc, half1.mrc, half2.mrc, fsc.star."""

    run_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """Folder of a finished `cryorbit flex train`."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="OUT")] = None
    """Folder for the results; DIR/deformed unless given."""
    particle: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """The conformation to bring all images to is that of this particle (rlnImageName, or its row from 1); the one in the
    middle of all unless given."""
    overwrite: bool = False
    """Replace an earlier reconstruction."""
    reading: Annotated[ImageOptions, Flat] = field(default_factory=ImageOptions)
    threads: int | None = None
    """CPU threads; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Reconstruct, then write everything into a folder that appears when it is whole."""
    from cryorbit.cli.flex_files import load_flex
    from cryorbit.cli.outputs import FSC, HALF1, HALF2, MAP, refuse_foreign, write_fsc
    from cryorbit.cli.progress import Teller, say
    from cryorbit.cli.run_folder import refuse_occupied, write_json
    from cryorbit.inference.flex_reconstruction import deformed_reconstruction
    from cryorbit.inference.flex_start import observed_for
    from cryorbit.io.atomic import atomic_folder
    from cryorbit.io.mrc import write_map

    out = settings.out or settings.run_dir / "deformed"
    if not settings.overwrite:
        refuse_occupied(out, (MAP, HALF1, HALF2, FSC))
    refuse_foreign(out, {MAP, HALF1, HALF2, FSC, _FACTS}.__contains__, verb="flex reconstruct")
    set_threads(settings.threads)
    result, trained = load_flex(settings.run_dir)
    stack = particles_of(settings, result)
    row = reference_row(settings.particle, stack, result.z)
    found = None
    with Teller() as teller:
        for record in deformed_reconstruction(result, observed_for(stack, trained), result.z[row]):
            teller.tell(record)
            found = record.result
    assert found is not None  # the last record has it
    with atomic_folder(out) as folder:
        for name, volume in zip((MAP, HALF1, HALF2), (found.map, *found.half_maps), strict=True):
            write_map(folder / name, volume)
        write_fsc(folder / FSC, {"unmasked": found.curve})
        facts = {
            "particle": str(stack.ids[row]),
            "resolution_0143_A": found.curve.resolution_A(0.143),
            "halves": "images independent, motion learned from both",
        }
        write_json(folder / _FACTS, facts)
    say(
        f"{out / MAP}: written, in the conformation of {stack.ids[row]}; half maps agree to "
        f"{found.curve.resolution_A(0.143):.2f} A (they share the motion, so this says nothing of whether it is right)."
    )
    return 0


def particles_of(settings: Settings, result: FlexResult) -> ParticleStack:
    """The run's particles with their images, and the poses that the run ended with.

    Raises
    ------
    BadFile
        If they are not those of the latents.
    """
    from cryorbit.cli.reading import read_images

    stack = read_images(settings.run_dir / "particles.star", settings.reading)
    if len(stack) != len(result.z):
        raise BadFile(
            f"{stack.source}: {len(stack)} particles, but the run has latents of {len(result.z)}. Restore the file that the "
            "run wrote."
        )
    return replace(stack, pose=result.pose)


def reference_row(name: str | None, stack: ParticleStack, z: Tensor) -> int:
    """The row of a particle by its name; else the one nearest to the median of all latent vectors."""
    from cryorbit.cli.flex_analyze import row_of

    if name is not None:
        return row_of(name, stack)
    return int((z - z.median(0).values).square().sum(1).argmin())
