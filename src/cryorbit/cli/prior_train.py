"""`cryorbit prior train -o DIR`: a prior of maps, chains or tri-planes of procedural proteins or of a folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from cryorbit.cli.config import MAY_CHANGE, Flat, flatten, to_yaml
from cryorbit.cli.options import ConfigOptions, OutFolder, set_threads
from cryorbit.cli.prior_files import PRIOR
from cryorbit.cli.reading import absolute
from cryorbit.errors import BadInput, CryorbitError
from cryorbit.inference.prior import PriorSettings
from cryorbit.inference.prior_recipe import HELD_BACK, PriorRecipe

if TYPE_CHECKING:
    from cryorbit.inference.prior_recipe import Structures

LISTING = "structures.json"
OUTPUTS = (PRIOR, LISTING)


def _of_maps() -> PriorSettings:
    return PriorSettings(
        steps=4000, learning_rate=2e-3, warm_up=100, average=0.999, noise_centre=0.5, noise_spread=2.0
    )


_SHIPPED: dict[str, Any] = vars(PriorRecipe()) | vars(_of_maps())
_CHAINS: dict[str, Any] = vars(PriorSettings()) | {"kind": "points", "batch": 16, "lengths": (40, 128)}
_TRIPLANES: dict[str, Any] = {
    "kind": "triplanes",
    "voxel_size_A": (3.0, 3.0),
    "map_resolution_A": (6.0, 6.0),
    "shift_A": 0.0,
    "principal_axes": True,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train a prior: DIR/prior.safetensors, with its units in it, and structures.json, which lists what it has seen."""

    PRESETS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "--kind": {"points": _CHAINS, "triplanes": _TRIPLANES},
        "--preset": {"shipped-32": _SHIPPED, "chains": _CHAINS, "triplanes": _TRIPLANES},
    }

    out: OutFolder
    """Folder for the results."""
    preset: Literal["shipped-32", "chains", "triplanes"] | None = None
    """Settings by name: those of the prior that comes with the program, those of chains, or those of tri-planes."""
    structures: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """PDB, mmCIF and BinaryCIF files to train on as well; relatives by sequence never straddle training and test."""
    residues: tuple[int, int] = (40, 400)
    """Shortest and longest chain of --structures that is taken."""
    hold_out: tuple[str, ...] = ()
    """Entries of --structures that must not be trained on, nor their relatives: 6lyz 101m."""
    shares: tuple[float, float] = (0.1, 0.1)
    """Shares of --structures for validation and for test."""
    split_seed: int = 0
    """Decides which clusters of sequences are which."""
    resume: bool = False
    """Go on with the run in DIR, with its settings, after any kind of stop."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints."""
    recipe: Annotated[PriorRecipe, Flat] = field(default_factory=PriorRecipe)
    training: Annotated[PriorSettings, Flat] = field(default_factory=_of_maps)
    threads: int | None = None
    """CPU threads; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Train, or go on training."""
    from cryorbit.cli.prior_files import save_prior
    from cryorbit.cli.progress import say
    from cryorbit.cli.run_folder import (
        CHECKPOINT,
        already_finished,
        open_run,
        read_metrics_of,
        refuse_nothing_to_resume,
        write_json,
    )
    from cryorbit.inference.prior_recipe import make_prior

    if settings.resume and already_finished(settings.out):
        return 0
    if settings.resume:
        refuse_nothing_to_resume(settings.out)
    if settings.structures is None and not settings.recipe.proteins:
        raise BadInput("--proteins 0 without --structures leaves nothing to train on. Give one of them.")
    settings = replace(settings, structures=absolute(settings.structures))
    set_threads(settings.threads)
    structures, listing = structures_of(settings)
    if settings.resume:
        refuse_changed(settings.out / LISTING, listing, settings.structures)
    folder = open_run(
        settings.out,
        verb="prior train",
        settings_yaml=to_yaml(settings),
        outputs=OUTPUTS,
        resume=settings.resume,
    )
    too_large: list[int] = []
    try:
        write_json(folder.path / LISTING, listing)
        records = make_prior(
            settings.recipe, settings.training, structures, state=folder.state, too_large=too_large
        )
        last = folder.follow(records, checkpoint_every_s=settings.checkpoint_every_s)
        if too_large:
            listing["procedural"]["too_large"] = too_large
            write_json(folder.path / LISTING, listing)
            say(f"{len(too_large)} procedural proteins too large for the box, and left out (see {LISTING})")
        reached = read_metrics_of(folder.path, "validation_dB")
        about = {"settings": told_to_others(settings), "validation_dB": reached, "structures": listing}
        save_prior(folder.path / PRIOR, last.result, about)
        folder.record(
            validation_dB=reached, parameters=sum(t.numel() for t in last.result.tensors().values())
        )
        folder.finish()
    except CryorbitError:
        # A checkpoint without its listing could go on with other structures, and learn those it is to be tested on.
        resumable = (folder.path / CHECKPOINT).exists()
        folder.abandon((PRIOR,) if resumable else OUTPUTS)
        raise
    told = (
        "" if reached is None else f", {reached:.2f} dB below what no learning gives on structures held back"
    )
    say(f"{folder.path / PRIOR}: a prior of {settings.recipe.kind}{told}")
    return 0


def refuse_changed(path: Path, listing: dict[str, Any], folder: Path | None) -> None:
    """Refuse to go on with other structures than a run began with: its test set would hold what it was trained on.

    Raises
    ------
    BadInput
        If the listing at `path` has another split, or is gone while there is a checkpoint.
    """
    from cryorbit.cli.run_folder import CHECKPOINT

    if not path.exists():
        if folder is not None and path.with_name(CHECKPOINT).exists():
            raise BadInput(
                f"{path}: is gone, so whether {folder} is as it was cannot be told. Put it back, or begin anew in another "
                "folder with -o."
            )
        return
    before = json.loads(path.read_text())
    changed = [part for part in ("train", "validation", "test") if before.get(part) != listing.get(part)]
    if changed:
        raise BadInput(
            f"{folder}: its structures are not those that {path} lists ({', '.join(changed)}). Put the folder back as it "
            "was, or begin anew in another folder with -o."
        )


def told_to_others(settings: Settings) -> dict[str, Any]:
    """Settings that go with the weights: without the places of files on this machine."""
    told = {name: value for name, value in flatten(settings).items() if name not in MAY_CHANGE}
    if settings.structures is not None:
        told["structures"] = settings.structures.name
    return told


def procedural_listing(recipe: PriorRecipe) -> dict[str, Any]:
    """Seeds of procedural proteins in each part; none is held back where none is trained on."""
    held_back = recipe.held_back if recipe.proteins else 0
    return {
        "train": f"seeds 0 to {recipe.proteins - 1}" if recipe.proteins else "none",
        "validation": f"seeds {HELD_BACK} to {HELD_BACK + held_back - 1}" if held_back else "none",
    }


def structures_of(settings: Settings) -> tuple[Structures, dict[str, Any]]:
    """Chains of the folder for training and validation, and the list of what is where and what is not used.

    The list goes with the weights, and names files as seen from the folder.

    Raises
    ------
    BadFile, BadInput
        If the folder holds none, or too few clusters to split.
    """
    from cryorbit.analysis.sequence_split import split_by_sequence
    from cryorbit.cli.progress import say
    from cryorbit.inference.prior_recipe import Structures, with_room
    from cryorbit.io.structure_folder import read_structure_folder

    recipe = settings.recipe
    procedural = procedural_listing(recipe)
    if settings.structures is None:
        return Structures(), {"procedural": procedural}
    shortest, longest = settings.residues
    found = read_structure_folder(settings.structures, shortest=shortest, longest=longest)
    say(f"{settings.structures}: {found.summary()}")
    validation, test = settings.shares
    split = split_by_sequence(
        {c.name: c.sequence for c in found.chains},
        seed=settings.split_seed,
        validation=validation,
        test=test,
        hold_out=settings.hold_out,
    )
    by_name = {c.name: c for c in found.chains}
    train, held = ([by_name[n] for n in names] for names in (split.train, split.validation))
    structures, too_large = with_room(recipe, Structures(train, held))
    if too_large:
        say(
            f"{len(too_large)} of them too large for a box of {recipe.box} voxels of {recipe.voxel_size_A[1]:g} A, and left "
            f"out (see {LISTING})"
        )
    listing = {
        "procedural": procedural,
        "train": [c.name for c in structures.train],
        "validation": [c.name for c in structures.validation],
        "test": split.test,
        "too_large": too_large,
        "skipped": {
            reason: [text.replace(f"{settings.structures}{os.sep}", "") for text in what]
            for reason, what in found.skipped.items()
        },
    }
    return structures, listing
