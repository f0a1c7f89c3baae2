"""`cryorbit prior sample -o DIR`: maps or chains of a prior, of no protein in particular, with their scores."""

from __future__ import annotations

import math
import re
import string
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.options import ComputeOptions, ConfigOptions, OutFolder, prepare
from cryorbit.cli.outputs import refuse_foreign
from cryorbit.cli.prior_files import PriorFile
from cryorbit.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from cryorbit.data import Atoms
    from cryorbit.models.point_prior import PointPrior
    from cryorbit.models.triplane_prior import TriplanePrior
    from cryorbit.models.volume_prior import VolumePrior

SCORES = "scores.csv"
CHAIN_IDS = string.ascii_uppercase + string.ascii_lowercase + string.digits
"""What a PDB file can call chains, in its one column."""
_LONGEST = 9999
"""Residue numbers have four columns."""
_SMALLEST_BOX = 8
_SAMPLE = re.compile(r"sample_\d{3,}\.(mrc|pdb)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Draw samples of a prior: DIR/sample_001.mrc (maps) or .pdb (C-alphas of chains), and scores.csv."""

    prior: tyro.conf.Positional[PriorFile] = None
    """The prior.safetensors of `prior train`; the shipped prior of maps unless given."""
    out: OutFolder
    """Folder for the results."""
    count: int = 4
    """Samples to draw."""
    voxel_size_A: float | None = None
    """Voxel of the maps; the middle of what the prior was trained on unless given, or what --resolution-A needs."""
    resolution_A: float | None = None
    """Low-pass that the maps shall look like; any that the prior knows unless given, of tri-planes their own."""
    box: int | None = None
    """Edge of the maps in voxels; the prior's own unless given."""
    residues: tuple[int, ...] = ()
    """Residues of each chain of a molecule, for a prior of chains; one of 100 unless given."""
    steps: int = 80
    """Levels of noise, two network passes each."""
    seed: int = 0
    """Decides the samples."""
    overwrite: bool = False
    """Replace earlier samples in the folder."""
    compute: Annotated[ComputeOptions, Flat] = field(default_factory=lambda: ComputeOptions(device="cpu"))
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Draw, score, write."""
    from cryorbit.cli.outputs import refuse_existing
    from cryorbit.cli.prior_files import load_prior
    from cryorbit.cli.progress import say
    from cryorbit.io.atomic import atomic_folder
    from cryorbit.models.point_prior import PointPrior

    refuse_senseless(settings)
    refuse_other_samples(settings.out)
    refuse_existing(settings.out, overwrite=settings.overwrite)
    device = prepare(settings.compute)
    prior = load_prior(settings.prior)
    prior.network.to(device)
    with atomic_folder(settings.out) as folder:
        table = (
            chains(prior, settings, folder)
            if isinstance(prior, PointPrior)
            else maps(prior, settings, folder)
        )
        table.to_csv(folder / SCORES, index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
    say(f"{settings.out}: {len(table)} samples and {SCORES}")
    return 0


def refuse_senseless(settings: Settings) -> None:
    """Raise before any work if a number can be none of its kind.

    Raises
    ------
    BadInput
        Naming the option.
    """
    least = {"count": 1, "steps": 1, "box": _SMALLEST_BOX}
    for name, limit in least.items():
        value = getattr(settings, name)
        if value is not None and value < limit:
            raise BadInput(f"--{name} {value}: give {limit} or more.")
    for name, value in (("voxel-size", settings.voxel_size_A), ("resolution", settings.resolution_A)):
        if value is not None and not 0 < value < math.inf:
            raise BadInput(f"--{name}-A {value:g}: give a number of angstroms above 0, or leave it out.")
    residues = settings.residues
    if residues and not 2 <= min(residues) <= max(residues) <= _LONGEST:
        raise BadInput(f"--residues {' '.join(map(str, residues))}: give chains of 2 to {_LONGEST} residues.")
    if len(residues) > len(CHAIN_IDS):
        raise BadInput(
            f"--residues: {len(residues)} chains, but a PDB file has names for {len(CHAIN_IDS)}. Give no more than these."
        )


def refuse_other_samples(out: Path) -> None:
    """Raise if the folder, which is to be replaced, holds what no earlier sampling wrote, or no whole sampling.

    Raises
    ------
    BadInput
        Naming the first such file.
    """
    refuse_foreign(out, lambda name: name == SCORES or bool(_SAMPLE.fullmatch(name)), verb="prior sample")
    held = sorted(out.iterdir()) if out.is_dir() else []
    if held and not (out / SCORES).exists():  # the samples of a reconstruction have names of this kind
        raise BadInput(
            f"{out}: its {held[0].name} is of no prior sample (no {SCORES}). Choose another folder with -o."
        )


def maps(prior: VolumePrior | TriplanePrior, settings: Settings, folder: Path) -> pd.DataFrame:
    """Maps, written, and the table of their scores."""
    from dataclasses import replace

    import pandas as pd

    from cryorbit.analysis.density_scores import score_density
    from cryorbit.inference.prior_samples import MAPS, sample_maps, sample_triplanes
    from cryorbit.io.mrc import write_map
    from cryorbit.models.triplane_prior import TriplanePrior

    if settings.residues:
        raise BadInput(
            "--residues: a prior of maps, which draws proteins of any size. Leave it out, or give a prior of --kind points."
        )
    given: dict[str, Any] = {
        "count": settings.count,
        "resolution_A": settings.resolution_A,
        "box": settings.box,
        "settings": replace(MAPS, steps=settings.steps, seed=settings.seed),
    }
    if isinstance(prior, TriplanePrior):
        found = sample_triplanes(prior, voxel_size_A=settings.voxel_size_A, **given)
    else:
        voxel = settings.voxel_size_A
        found = sample_maps(
            prior,
            voxel_size_A=usual_voxel_A(prior, settings.resolution_A) if voxel is None else voxel,
            **given,
        )
    rows = []
    for number, volume in enumerate(found, start=1):
        name = f"sample_{number:03d}.mrc"
        write_map(folder / name, volume)
        rows.append({"file": name, "voxel_A": volume.pixel_size_A, **asdict(score_density(volume))})
    return pd.DataFrame(rows)


def usual_voxel_A(prior: VolumePrior, resolution_A: float | None) -> float:
    """The geometric mean of the voxels that a prior knows, or smaller where a resolution wants two voxels or more."""
    low, high = prior.shape.voxel_size_A
    middle = math.sqrt(low * high)
    return middle if resolution_A is None else max(low, min(middle, resolution_A / 2))


def chains(prior: PointPrior, settings: Settings, folder: Path) -> pd.DataFrame:
    """Chains, written, and the table of their scores."""
    import pandas as pd
    import torch

    from cryorbit.analysis.chain_scores import score_chain
    from cryorbit.inference.prior_samples import SampleSettings, sample_chains
    from cryorbit.io.atoms import write_atoms

    if any(v is not None for v in (settings.voxel_size_A, settings.resolution_A, settings.box)):
        raise BadInput(
            f"{settings.prior}: a prior of chains, which knows no voxels. Leave out voxel size, resolution and box."
        )
    residues = settings.residues or (100,)
    how = SampleSettings(steps=settings.steps, seed=settings.seed)
    found = sample_chains(prior, residues, count=settings.count, settings=how).cpu()
    generator = torch.Generator().manual_seed(settings.seed)
    rows = []
    for number, ca in enumerate(found, start=1):
        name = f"sample_{number:03d}.pdb"
        write_atoms(folder / name, traces(ca, residues))
        for chain, part in enumerate(ca.split(list(residues))):
            scores = asdict(score_chain(part, generator=generator))
            rows.append({"file": name, "chain": CHAIN_IDS[chain], **scores})
    return pd.DataFrame(rows)


def traces(ca_A: torch.Tensor, residues: tuple[int, ...]) -> Atoms:
    """C-alphas of alanines, chains A, B, ..."""
    import numpy as np
    import torch

    from cryorbit.data import Atoms

    n = len(ca_A)
    return Atoms(
        ca_A,
        torch.full((n,), 6),
        torch.full((n,), 30.0),
        torch.ones(n),
        chain=np.concatenate([np.full(k, CHAIN_IDS[i], dtype=object) for i, k in enumerate(residues)]),
        residue_name=np.full(n, "ALA", dtype=object),
        atom_name=np.full(n, "CA", dtype=object),
        residue_number=np.concatenate([np.arange(1, k + 1) for k in residues]),
    )
