"""The files of `cryorbit postprocess`: written together, and read again for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit.cli.outputs import FSC, fsc_table, making_folder, read_fsc
from cryorbit.cli.run_folder import read_json, write_json, write_text
from cryorbit.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from cryorbit.analysis.fsc import MaskedCorrelation
    from cryorbit.analysis.postprocess import PostprocessResult
    from cryorbit.cli.postprocess import Settings
    from cryorbit.data import Volume

SHARPENED, MASKED, MASK, LOCAL = (
    "postprocess.mrc",
    "postprocess_masked.mrc",
    "mask.mrc",
    "local_resolution.mrc",
)
XML, CSV, GUINIER, CONES, SUMMARY = "fsc.xml", "fsc.csv", "guinier.csv", "cone_fsc.csv", "postprocess.json"
OWN = (SHARPENED, MASKED, MASK, LOCAL, XML, CSV, GUINIER, CONES, SUMMARY)


def refuse_others(out: Path) -> None:
    """Raise if the folder holds files of our names that no earlier postprocess wrote.

    Raises
    ------
    BadInput
        Naming what was found.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file, wanted a folder. Choose another name with -o.")
    held = [] if (out / SUMMARY).exists() else [name for name in OWN if (out / name).exists()]
    if held:
        raise BadInput(
            f"{out}: holds {', '.join(held)}, which no earlier postprocess wrote. Rename it, or choose another "
            "folder with -o."
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summary(
    found: PostprocessResult, local: Volume | None, settings: Settings, halves: Sequence[Path]
) -> dict[str, Any]:
    """What postprocess.json says."""
    from cryorbit.cli.config import flatten

    curves, fit = found.curves, found.fit
    return {
        "half_maps": [str(path.absolute()) for path in halves],
        "mask": "automatic" if settings.mask is None else str(settings.mask.absolute()),
        "resolution_0143_A": found.resolution_A,
        "resolution_05_A": _finite(curves.corrected.resolution_A(0.5)),
        "resolution_0143_unmasked_A": _finite(curves.unmasked.resolution_A(0.143)),
        "resolution_0143_masked_A": _finite(curves.masked.resolution_A(0.143)),
        "nyquist_limited": curves.corrected.nyquist_limited(0.143),
        "randomised_from_shell": curves.randomised_from,
        "mask_share_of_box": float((found.mask.values > 0.5).double().mean()),
        "b_factor_A2": found.b_factor_A2,
        "low_pass_A": found.low_pass_A,
        "guinier_fit": None if fit is None else dict(vars(fit)),
        "cone_fsc": _cones(found),
        "local_resolution": None if local is None else _local(local, settings),
        "warnings": list(found.warnings),
        "settings": flatten(settings) | {"maps": [str(path) for path in settings.maps]},
    }


def _cones(found: PostprocessResult) -> dict[str, Any]:
    cones = found.cones
    resolution = cones.resolution_A(0.143)
    return {
        "half_angle_deg": cones.half_angle_deg,
        "resolution_A": [
            _finite(float(v)) for v in (resolution.min(), resolution.median(), resolution.max())
        ],
        "worst_axis": cones.worst_axis(0.143).tolist(),
        "sphericity": cones.sphericity(0.143),
        "area_ratio": cones.area_ratio(),
    }


def _local(local: Volume, settings: Settings) -> dict[str, Any]:
    import torch

    inside = local.values[local.values > 0].double()
    if len(inside) > 1_000_000:  # torch.quantile takes no more than 16 million; an even sample tells the same
        inside = inside[:: len(inside) // 1_000_000]
    quantiles = torch.quantile(inside, torch.tensor([0.05, 0.5, 0.95]).to(inside))
    return {"threshold": settings.windows.local_threshold, "quantiles_A": quantiles.tolist()}


def write_all(out: Path, found: PostprocessResult, local: Volume | None, facts: dict[str, Any]) -> None:
    """Every file, each whole or not at all; postprocess.json last, as the sign that all are there."""
    from cryorbit.io.fsc_xml import write_fsc_xml
    from cryorbit.io.mrc import write_map

    fresh = () if out.exists() else (*OWN, FSC)
    with making_folder(out, fresh):
        (out / SUMMARY).unlink(missing_ok=True)
        write_map(out / SHARPENED, found.map)
        write_map(out / MASKED, found.masked)
        write_map(out / MASK, found.mask)
        if local is None:
            (out / LOCAL).unlink(missing_ok=True)
        else:
            write_map(out / LOCAL, local)
        write_star_tables(out / FSC, found, facts)
        corrected = found.curves.corrected
        write_fsc_xml(
            out / XML,
            corrected.frequency_per_A.tolist(),
            corrected.correlation.tolist(),
            title="Half maps, masked, corrected by phase randomisation",
        )
        write_text(out / CSV, _csv(curves_by_name(found.curves)))
        write_text(out / GUINIER, _guinier(found).to_csv(index=False))
        write_text(out / CONES, _cone_table(found).to_csv(index=False))
        write_json(out / SUMMARY, facts)


def curves_by_name(curves: MaskedCorrelation) -> dict[str, Any]:
    """The four curves with the names that files use."""
    names = ("unmasked", "masked", "randomised", "corrected")
    return {name: getattr(curves, name) for name in names}


def _csv(curves: dict[str, Any]) -> str:
    import pandas as pd

    frequency = next(iter(curves.values())).frequency_per_A.tolist()
    columns = {name: curve.correlation.tolist() for name, curve in curves.items()}
    table = pd.DataFrame({"shell": range(len(frequency)), "frequency_per_A": frequency, **columns})
    table.insert(2, "resolution_A", [None if f == 0 else 1.0 / f for f in frequency])
    return table.to_csv(index=False)


def _guinier(found: PostprocessResult) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    plot = found.guinier
    with np.errstate(
        divide="ignore"
    ):  # ln 0 is minus infinity: an empty shell, and an empty field in the file
        columns = {
            "resolution_squared_per_A2": plot.frequency_per_A.square().cpu().numpy(),
            "ln_amplitude": np.log(plot.amplitude.cpu().numpy()),
            "ln_amplitude_weighted": np.log(plot.weighted.cpu().numpy()),
        }
    table = pd.DataFrame(columns)
    if found.fit is not None:
        table["fit"] = found.fit.intercept + 0.25 * found.fit.b_factor_A2 * table["resolution_squared_per_A2"]
    return table.replace([np.inf, -np.inf], np.nan)


def _cone_table(found: PostprocessResult) -> pd.DataFrame:
    import pandas as pd

    cones = found.cones
    table = pd.DataFrame(cones.axis.tolist(), columns=["x", "y", "z"])
    table["resolution_A"] = [_finite(v) for v in cones.resolution_A(0.143).tolist()]
    shells = {f"fsc_{i}": cones.correlation[:, i].tolist() for i in range(cones.correlation.shape[1])}
    return pd.concat([table, pd.DataFrame(shells)], axis=1)


def write_star_tables(path: Path, found: PostprocessResult, facts: dict[str, Any]) -> None:
    """fsc.star as RELION's postprocess.star: general, fsc and guinier; other tables and columns there stay."""
    import pandas as pd

    from cryorbit.io.star import SIMPLE, read_star, write_star

    tables = read_star(path) if path.exists() else {}
    general = pd.DataFrame(
        {
            "rlnFinalResolution": [facts["resolution_0143_A"]],
            "rlnBfactorUsedForSharpening": [facts["b_factor_A2"]],
            "rlnUnfilteredMapHalf1": [facts["half_maps"][0]],
            "rlnUnfilteredMapHalf2": [facts["half_maps"][1]],
            "rlnMaskName": [MASK],
        }
    )
    shell = found.curves.randomised_from
    if shell < len(found.curves.unmasked.frequency_per_A):
        general["rlnRandomiseFrom"] = [1.0 / float(found.curves.unmasked.frequency_per_A[shell])]
    if found.fit is not None:
        general["rlnFittedSlopeGuinierPlot"] = [found.fit.b_factor_A2 / 4]
        general["rlnFittedInterceptGuinierPlot"] = [found.fit.intercept]
        general["rlnCorrelationFitGuinierPlot"] = [found.fit.correlation]
    general.attrs[SIMPLE] = True
    curves = fsc_table(curves_by_name(found.curves))
    before = tables.get("fsc")
    if before is not None and len(before) == len(curves):
        for label in before.columns.difference(curves.columns, sort=False):
            curves[label] = before[label].to_numpy()
    plot = _guinier(found)
    labels = {
        "rlnResolutionSquared": "resolution_squared_per_A2",
        "rlnLogAmplitudesOriginal": "ln_amplitude",
        "rlnLogAmplitudesWeighted": "ln_amplitude_weighted",
    }
    # -99 is RELION's number for the logarithm of nothing
    guinier = pd.DataFrame({label: plot[name].fillna(-99.0).to_numpy() for label, name in labels.items()})
    others = {name: t for name, t in tables.items() if name not in ("general", "fsc", "guinier")}
    write_star(path, {"general": general, "fsc": curves, "guinier": guinier, **others})


def of_postprocess(folder: Path) -> dict[str, Any]:
    """The report's entries about an earlier postprocess, {} if there was none."""
    from cryorbit.analysis.fsc import MaskedCorrelation
    from cryorbit.io.mrc import read_map
    from cryorbit.report.data import PostprocessReading

    facts = read_json(folder / SUMMARY)
    if not facts or not (folder / FSC).exists() or not (folder / SHARPENED).exists():
        return {}
    curves = read_fsc(folder / FSC)
    if not {"unmasked", "masked", "randomised", "corrected"} <= curves.keys():
        return {}
    masked = MaskedCorrelation(**curves, randomised_from=int(facts["randomised_from_shell"]))
    axis, cone_resolution, cone_curves = _read_cones(folder / CONES)
    reading = PostprocessReading(
        map=read_map(folder / SHARPENED),
        mask=read_map(folder / MASK),
        local=read_map(folder / LOCAL) if (folder / LOCAL).exists() else None,
        facts=facts,
        guinier=_read_table(folder / GUINIER),
        frequency_per_A=masked.corrected.frequency_per_A,
        cone_axis=axis,
        cone_resolution_A=cone_resolution,
        cone_correlation=cone_curves,
    )
    return {"masked_curve": masked, "half_curve": masked.unmasked, "postprocessed": reading}


def _read_table(path: Path) -> dict[str, torch.Tensor]:
    import pandas as pd
    import torch

    table = pd.read_csv(path)
    return {str(name): torch.tensor(table[name].to_numpy(float)) for name in table.columns}


def _read_cones(path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    table = _read_table(path)
    axis = torch.stack([table[name] for name in ("x", "y", "z")], 1)
    curves = torch.stack([values for name, values in table.items() if name.startswith("fsc_")], 1)
    return axis, table["resolution_A"].nan_to_num(nan=math.inf), curves
