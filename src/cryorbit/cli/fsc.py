"""`cryorbit fsc A.mrc B.mrc`: how well two maps agree, shell by shell."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions

if TYPE_CHECKING:
    from cryorbit.data import Volume


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Fourier shell correlation of two maps, with the resolution at its first crossings."""

    map_a: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="A.mrc")]]
    """First map, for instance half map 1."""
    map_b: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="B.mrc")]]
    """Second map."""
    mask: Annotated[Path | None, tyro.conf.arg(metavar="M.mrc")] = None
    """Soft mask; its effect is measured by phase randomisation and taken out."""
    align: bool = False
    """Turn, shift and, if that fits better, mirror A onto B first; boxes and pixel sizes may then differ."""
    seed: int = 0
    """Seed of the random phases."""
    json: bool = False
    """Print JSON instead of a table."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Print the curve."""
    import torch

    from cryorbit.analysis.fsc import fourier_shell_correlation, phase_randomised_fsc
    from cryorbit.io.mrc import read_map

    a, b = read_map(settings.map_a), read_map(settings.map_b)
    placed = {}
    if settings.align:
        a, placed = aligned(a, b)
    columns = {"fsc": fourier_shell_correlation(a, b)}
    warnings = []
    if settings.mask is not None:
        generator = torch.Generator().manual_seed(settings.seed)
        masked = phase_randomised_fsc(a, b, read_map(settings.mask), generator)
        columns |= {"masked": masked.masked, "randomised": masked.randomised, "corrected": masked.corrected}
        if masked.mask_too_tight():
            warnings.append(
                "the mask alone correlates the maps at the final resolution: make it wider or softer"
            )
    final = columns["corrected" if settings.mask is not None else "fsc"]
    for threshold in (0.143, 0.5):
        if final.nyquist_limited(threshold):
            warnings.append(f"the curve never drops below {threshold}: limited by the pixel size")
        elif final.recrosses(threshold):
            warnings.append(f"the curve rises above {threshold} again: the first crossing is reported")
    result = {
        "resolution_0143_A": final.resolution_A(0.143),
        "resolution_05_A": final.resolution_A(0.5),
        "frequency_per_A": final.frequency_per_A.tolist(),
        **{name: curve.correlation.tolist() for name, curve in columns.items()},
        **placed,
        "warnings": warnings,
    }
    if settings.json:
        print(json_format.dumps(finite(result)))
    else:
        _print_table(result, list(columns))
    return 0


def aligned(moving: Volume, reference: Volume) -> tuple[Volume, dict[str, object]]:
    """The map on the reference, and how it got there."""
    from cryorbit.analysis.align import align_map

    found = align_map(moving, reference)
    how = {"hand": found.hand, "alignment_score": found.score, "alignment_significance": found.significance}
    return found.aligned, how


def finite(value: object) -> object:
    """The same with null where JSON has no number for it (infinity, NaN)."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _print_table(result: dict, names: list[str]) -> None:
    print("shell  resolution_A  " + "  ".join(f"{name:>10s}" for name in names))
    for shell, frequency in enumerate(result["frequency_per_A"]):
        resolution = f"{1 / frequency:12.2f}" if frequency > 0 else " " * 11 + "-"
        print(f"{shell:5d}  {resolution}  " + "  ".join(f"{result[name][shell]:10.4f}" for name in names))
    at_0143, at_05 = result["resolution_0143_A"], result["resolution_05_A"]
    print(f"resolution at FSC 0.143: {at_0143:.2f} A, at 0.5: {at_05:.2f} A")
    if "hand" in result:
        print(f"aligned: hand {result['hand']:+d}, score {result['alignment_score']:.3f}")
    for warning in result["warnings"]:
        print(f"warning: {warning}")
