"""`cryorbit map align REF MOVING -o OUT`: rotation, shift and hand that bring one map onto another."""

from __future__ import annotations

import json as json_format
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cryorbit.analysis.align import Mode
from cryorbit.cli.config import Flat
from cryorbit.cli.fsc import finite
from cryorbit.cli.map_files import MapOptions, on_grid_of, read_any, write_any
from cryorbit.cli.options import ConfigOptions, set_threads
from cryorbit.cli.outputs import refuse_existing
from cryorbit.cli.progress import say
from cryorbit.errors import BadInput

if TYPE_CHECKING:
    from cryorbit.analysis.align import MapAlignment
    from cryorbit.data import Volume

MODEL_ENDINGS = (".pdb", ".ent", ".cif", ".mmcif")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Bring MOVING, a map or a model, onto REF: any start, both hands, other boxes and voxels."""

    reference: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="REF")]]
    """Map that stays."""
    moving: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MOVING")]]
    """Map that is moved; or a model (.pdb, .cif), simulated at --resolution-A."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="OUT.mrc")] = None
    """The moved map on REF's grid, with REF's header."""
    mode: Mode = "auto"
    """full: the same particle; partial: one shows a part of the other; auto: full, then partial if in doubt."""
    mirror: bool = True
    """Try the other hand too."""
    mask: Annotated[Path | None, tyro.conf.arg(metavar="MASK")] = None
    """On REF's grid: only this part of REF counts."""
    symmetry: str = "C1"
    """Point group of REF about its axes: of equivalent motions the least turn is given."""
    resolution_A: float | None = None
    """Resolution at which a model is simulated; twice REF's voxel size, at least 4 A, unless given."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None
    """Model that fits MOVING, to be moved with it; MOVING itself if that is a model."""
    out_model: Annotated[Path | None, tyro.conf.arg(metavar="OUT.pdb")] = None
    """Where to write the moved model (.pdb or .cif)."""
    json: bool = False
    """Print JSON."""
    threads: int | None = None
    """CPU threads; all cores unless given."""
    files: Annotated[MapOptions, Flat] = field(default_factory=MapOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Align, write, print."""
    from cryorbit.analysis.align import align_map

    _refuse(settings)
    set_threads(settings.threads)
    reference, shape = read_any(settings.reference, settings.files)
    mask = None if settings.mask is None else on_grid_of(settings.mask, reference, name="mask")
    moving = _moving(settings, reference)
    start = time.perf_counter()
    found = align_map(
        moving,
        reference,
        hand="both" if settings.mirror and not is_model(settings.moving) else "same",
        mode=settings.mode,
        mask=mask,
        symmetry=settings.symmetry,
    )
    row = describe(found, moving, reference, seconds=time.perf_counter() - start)
    if settings.out_model is not None:
        _write_model(settings, found, row)
    if settings.out is not None:
        write_any(settings.out, found.aligned, shape)
    if settings.json:
        print(json_format.dumps(finite(row)))
    else:
        _tell(found, row)
    return 0


def is_model(path: Path) -> bool:
    """Whether the name is that of a molecular model (compression looked through).

    >>> is_model(Path("1ake.pdb.gz")), is_model(Path("a.mrc"))
    (True, False)
    """
    return any(ending in MODEL_ENDINGS for ending in path.suffixes[-2:])


def _refuse(settings: Settings) -> None:
    refuse_existing(settings.out, overwrite=settings.files.overwrite)
    refuse_existing(settings.out_model, overwrite=settings.files.overwrite)
    given = settings.model is not None or is_model(settings.moving)
    if settings.out_model is not None and not given:
        raise BadInput("--out-model: no model was given. Add --model, or give a model as MOVING.")
    if settings.model is not None and settings.out_model is None:
        raise BadInput("--model: where should it go? Add --out-model.")
    if settings.out_model is not None and settings.out_model.suffix not in MODEL_ENDINGS:
        raise BadInput(f"{settings.out_model}: give a name that ends in .pdb or .cif.")


def _moving(settings: Settings, reference: Volume) -> Volume:
    """The map to move, made from a model if need be; in the model's own coordinates."""
    if not is_model(settings.moving):
        return read_any(settings.moving, settings.files)[0]
    from cryorbit.io.atoms import read_atoms
    from cryorbit.physics.scatter import map_of_model

    resolution = settings.resolution_A
    if resolution is None:
        resolution = max(4.0, 2.0 * reference.pixel_size_A)
    return map_of_model(read_atoms(settings.moving), resolution_A=resolution, like=reference)


def describe(found: MapAlignment, moving: Volume, reference: Volume, *, seconds: float) -> dict[str, Any]:
    """The row of `--json`; `matrix` (3 x 4) takes viewers' coordinates of MOVING to those of REF, in angstrom."""
    from cryorbit.analysis.align import placing_matrix
    from cryorbit.geometry.rotations import matrix_to_rotvec

    angle = float(matrix_to_rotvec(found.rotation).norm().rad2deg())
    return {
        "angle_deg": angle,
        "shift_A": found.shift_A.tolist(),
        "hand": found.hand,
        "hand_verdict": found.hand_verdict,
        "score": found.score,
        "score_other_hand": found.scores.get(-found.hand),
        "z": found.significance,
        "mode": found.mode,
        "agreement_A": found.agreement_A,
        "matrix": placing_matrix(found, moving, reference).tolist(),
        "rotation": found.rotation.tolist(),
        "seconds": seconds,
    }


def _write_model(settings: Settings, found: MapAlignment, row: dict[str, Any]) -> None:
    from cryorbit.io.atoms import write_moved_model

    if found.hand == -1:
        raise BadInput(
            "--out-model: the mirrored map fits better, and a model has no mirror image. "
            "Give --no-mirror, or flip the map first (`cryorbit map flip`)."
        )
    source = settings.moving if settings.model is None else settings.model
    assert settings.out_model is not None
    write_moved_model(source, settings.out_model, row["matrix"])
    say(f"{settings.out_model}: written")


def _tell(found: MapAlignment, row: dict[str, Any]) -> None:
    from cryorbit.analysis.align import SIGNIFICANT_Z

    x, y, z = row["shift_A"]
    print(f"turn {row['angle_deg']:.3f} deg, shift {x:.2f} {y:.2f} {z:.2f} A, mode {found.mode}")
    other = row["score_other_hand"]
    beside = "" if other is None else f", other hand {other:.3f}"
    print(f"hand {found.hand:+d} ({found.hand_verdict}): score {found.score:.3f}{beside}")
    print(f"z {found.significance:.1f}; the maps agree to {found.agreement_A:.1f} A (shell correlation 0.5)")
    if found.significance < SIGNIFICANT_Z:
        print(
            f"warning: z below {SIGNIFICANT_Z}: unrelated maps reach that; look at the result before using it"
        )
    print(f"{row['seconds']:.1f} s")
