"""`cryorbit flex train --half-sets`: the same training on each half of the particles, and how far the two agree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cryorbit.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from cryorbit.cli.flex_train import Settings
    from cryorbit.data import ParticleStack
    from cryorbit.inference.flex_result import FlexResult

AGREEMENT, TABLE = "half_sets.star", "half_sets.csv"
FOLDERS = ("half1", "half2")


def refuse_shared_start(settings: Settings) -> None:
    """Raise if the halves would begin with the same density.

    Raises
    ------
    BadInput
        If a map or Gaussians are given.
    """
    if settings.map is not None or settings.gaussians is not None:
        raise BadInput(
            "--half-sets with --map or --gaussians: both halves would begin with the same density, and agree for that. "
            "Leave the map out; each half makes its own."
        )


def train_halves(settings: Settings, stack: ParticleStack) -> None:
    """Train on each half in a folder of its own, then compare; what is finished is not done again."""
    import torch

    from cryorbit.cli.flex_files import load_flex
    from cryorbit.cli.flex_train import train
    from cryorbit.cli.progress import say
    from cryorbit.cli.run_folder import already_finished
    from cryorbit.inference.half_sets import half_sets

    whole, _ = load_flex(settings.out)
    half = half_sets(stack, generator=torch.Generator().manual_seed(settings.inference.seed))
    found: list[FlexResult] = []
    for h, name in enumerate(FOLDERS):
        out = settings.out / name
        if not (settings.resume and already_finished(out)):
            say(f"Half set {h + 1}: {int((half == h).sum())} particles")
            part = stack.select(torch.nonzero(half == h)[:, 0])
            train(replace(settings, out=out, half_sets=False), part, None, None)
        found.append(load_flex(out)[0])
    _compare(settings, whole, found, half)


def _compare(settings: Settings, whole: FlexResult, halves: list[FlexResult], half: Tensor) -> None:
    """The curves, a table of the groups, and a word on them."""
    import pandas as pd

    from cryorbit.cli.outputs import fsc_table
    from cryorbit.cli.progress import say
    from cryorbit.cli.run_folder import write_text
    from cryorbit.inference.flex_halves import compare_half_models
    from cryorbit.io.star import write_star

    agreed = compare_half_models(whole, halves, half, seed=settings.inference.seed)
    resolution = agreed.resolutions_A()
    names = [f"group_{k + 1:02d}" for k in range(len(agreed.curves))]
    tables = {name: fsc_table({"unmasked": c}) for name, c in zip(names, agreed.curves, strict=True)}
    write_star(settings.out / AGREEMENT, tables)
    columns = {"group": names, "particles": agreed.images.tolist(), "resolution_0143_A": resolution.tolist()}
    write_text(settings.out / TABLE, pd.DataFrame(columns).to_csv(index=False, float_format="%.3f"))
    say(
        f"{settings.out / TABLE}: maps of {len(names)} groups of like conformation, as two models have them that were "
        f"learned from a half of the particles each, agree (FSC 0.143) to {float(resolution.median()):.1f} A in the "
        f"median and {float(resolution.max()):.1f} A at worst."
    )
