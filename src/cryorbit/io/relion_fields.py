"""What the columns of a RELION particle table mean: pixel size, pose, CTF, half set."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cryorbit.data.ctf import CTF
from cryorbit.data.pose import Pose
from cryorbit.errors import BadFile
from cryorbit.geometry.conventions import relion_angles_to_matrix
from cryorbit.io.notices import (
    DefaultOpticsWarning,
    PixelOriginsWarning,
    PixelSizeWarning,
    PlaceholderPoseWarning,
)
from cryorbit.io.relion_table import RelionTables

Origins = Literal["auto", "angstrom", "pixels"]
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS_A = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGINS_PX = ("rlnOriginX", "rlnOriginY")
MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
SIGN = "cryorbitImageSign"
"""Our own column: what the stored image is multiplied by so that protein is light."""
PLACEHOLDER_DEG = -999.0
"""What RELION writes for an angle that is not known."""
CTF_LABELS = {
    "defocus_u_A": ("rlnDefocusU", None),
    "defocus_v_A": ("rlnDefocusV", None),
    "astigmatism_angle_deg": ("rlnDefocusAngle", 0.0),
    "voltage_kV": ("rlnVoltage", 200.0),
    "cs_mm": ("rlnSphericalAberration", 0.0),
    "amplitude_contrast": ("rlnAmplitudeContrast", 0.0),
    "phase_shift_deg": ("rlnPhaseShift", 0.0),
    "b_factor_A2": ("rlnCtfBfactor", 0.0),
    "scale": ("rlnCtfScalefactor", 1.0),
}
"""Field of `CTF`: RELION's label and RELION's default (None: see `ctf_from_relion`)."""
_PIXEL_LABELS = ("rlnImagePixelSize", "rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")


def pixel_size_from_relion(tables: RelionTables, given_A: float | None) -> float | None:
    """Pixel size in angstrom that all particles share: given, else from the tables, else None.

    Raises
    ------
    BadFile
        If optics groups differ, or a value is not positive.
    """
    found = None
    label = next((name for name in _PIXEL_LABELS if tables.where(name)), None)
    if label is not None:
        found = tables.numbers(label)
    elif tables.where("rlnMagnification") and tables.where("rlnDetectorPixelSize"):
        label = "rlnDetectorPixelSize / rlnMagnification"
        magnification = tables.numbers("rlnMagnification")
        if (magnification <= 0).any():
            row = int(np.flatnonzero(magnification <= 0)[0])
            raise BadFile(f"{tables.path}: row {row + 1}: rlnMagnification is not positive. Correct it.")
        found = 1e4 * tables.numbers("rlnDetectorPixelSize") / magnification
    elif tables.where("rlnPixelSize"):
        label = "rlnPixelSize"
        found = tables.numbers(label)
    if found is None or label is None:
        return given_A
    if given_A is not None:
        differs = np.abs(found - given_A) > 1e-3 * given_A
        if differs.any():
            warnings.warn(
                f"{tables.path}: pixel size {given_A:g} A as you gave it, though the file says "
                f"{found[differs][0]:g} A.",
                PixelSizeWarning,
                stacklevel=4,
            )
        return given_A
    size = tables.one_value(found, "a pixel size of", " A")
    if size <= 0:
        raise BadFile(
            f"{tables.path}: {label} is {size:g} A, not positive. Correct it or state the pixel size."
        )
    return size


def pose_from_relion(tables: RelionTables, pixel_size_A: float, origins: Origins) -> Pose | None:
    """Poses in the house frame: A(rot, tilt, psi), and shift_A = -origin. None where an angle is missing or
    -999.
    """
    if any(tables.where(label) is None for label in ANGLES):
        return None
    angles = np.stack([tables.numbers(label) for label in ANGLES], 1)
    unknown = (angles == PLACEHOLDER_DEG).any(1)
    if unknown.all():
        return None
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        warnings.warn(
            f"{tables.path}: {int(unknown.sum())} of {len(tables)} particles (the first in row {row + 1}) "
            "have -999 "
            "for an angle, so the poses are left out. Remove those rows to use the others.",
            PlaceholderPoseWarning,
            stacklevel=4,
        )
        return None
    rotation = relion_angles_to_matrix(torch.from_numpy(angles)).to(torch.float32)
    shift = 0.0 - origins_A(tables, pixel_size_A, origins)
    return Pose(rotation, _float(shift))


def origins_A(tables: RelionTables, pixel_size_A: float, origins: Origins) -> np.ndarray:
    """The origins in angstrom, (n, 2).

    With an optics table RELION takes the angstrom columns and nothing else; without one, the pixel columns.

    Raises
    ------
    BadFile
        If the columns asked for are missing.
    """
    has_A = all(tables.where(label) for label in ORIGINS_A)
    has_px = all(tables.where(label) for label in ORIGINS_PX)
    if origins == "pixels" and not has_px:
        raise BadFile(f"{tables.path}: no rlnOriginX and rlnOriginY in pixels. Read it with --origins auto.")
    if origins == "angstrom" and not has_A:
        raise BadFile(f"{tables.path}: no rlnOriginXAngst and rlnOriginYAngst. Read it with --origins auto.")
    old_file = tables.optics is None
    use_px = origins == "pixels" or (origins == "auto" and has_px and (old_file or not has_A))
    if not use_px:
        return np.stack([tables.numbers(label, 0.0) for label in ORIGINS_A], 1)
    in_A = np.stack([tables.numbers(label) for label in ORIGINS_PX], 1) * pixel_size_A
    if origins == "pixels" or old_file or not in_A.any():
        return in_A
    warnings.warn(
        f"{tables.path}: shifts stand only in pixels (rlnOriginX/Y) beside an optics table, and RELION 3.1 "
        "and later "
        "read such a file as not shifted; so do we. Say --origins pixels to use them.",
        PixelOriginsWarning,
        stacklevel=5,
    )
    return np.zeros_like(in_A)


def ctf_from_relion(tables: RelionTables) -> CTF | None:
    """CTF parameters, looked up in the particle table, then the optics table, then RELION's defaults.

    None where there is no rlnDefocusU. rlnDefocusV defaults to rlnDefocusU.
    """
    if tables.where("rlnDefocusU") is None:
        return None
    values: dict[str, Tensor] = {}
    missing = []
    for field, (label, default) in CTF_LABELS.items():
        if field == "defocus_v_A" and tables.where(label) is None:
            values[field] = values["defocus_u_A"]
            continue
        if field in ("voltage_kV", "cs_mm", "amplitude_contrast") and tables.where(label) is None:
            missing.append(f"{label} ({default:g} is used)")
        values[field] = _float(tables.numbers(label, default))
    if missing:
        warnings.warn(
            f"{tables.path}: no {', '.join(missing)}: RELION's defaults. Add the true values to the optics "
            "table.",
            DefaultOpticsWarning,
            stacklevel=4,
        )
    tilt = None
    if tables.where("rlnBeamTiltX") and tables.where("rlnBeamTiltY"):
        tilt = np.stack([tables.numbers("rlnBeamTiltX"), tables.numbers("rlnBeamTiltY")], 1)
    magnification = None
    if all(tables.where(label) for label in MAGNIFICATION):
        magnification = np.stack([tables.numbers(label) for label in MAGNIFICATION], 1).reshape(-1, 2, 2)
        if (magnification == np.eye(2)).all():
            magnification = None
    odd, even = _of_one_width(_zernike(tables, "rlnOddZernike"), _zernike(tables, "rlnEvenZernike"))
    return CTF(
        **values,
        beam_tilt_mrad=_unless_zero(tilt),
        odd_zernike=_unless_zero(odd),
        even_zernike=_unless_zero(even),
        magnification=None if magnification is None else _float(magnification),
    )


def half_set_from_relion(tables: RelionTables) -> Tensor | None:
    """The column rlnRandomSubset where it holds 1 and 2, else None."""
    if tables.where("rlnRandomSubset") is None:
        return None
    subset = tables.numbers("rlnRandomSubset")
    if not np.isin(subset, (1, 2)).all():
        return None
    return torch.from_numpy(subset.astype(np.int64))


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _unless_zero(values: np.ndarray | None) -> Tensor | None:
    return None if values is None or not values.any() else _float(values)


def _zernike(tables: RelionTables, label: str) -> np.ndarray | None:
    """Bracketed comma lists, one per particle or optics group, as an array filled up with zeros."""
    texts = tables.values(label)
    if texts is None:
        return None
    unique, inverse = np.unique(texts.astype(str), return_inverse=True)
    lists = []
    for text in unique:
        try:
            lists.append([float(v) for v in text.strip("[]").split(",") if v.strip()])
        except ValueError:
            raise BadFile(
                f"{tables.path}: {label} is {str(text)!r}, a list like [0,0.1,2] is wanted. Correct it."
            ) from None
    width = max(map(len, lists), default=0)
    if width == 0:
        return None
    return np.array([v + [0.0] * (width - len(v)) for v in lists])[inverse]


def _of_one_width(a: np.ndarray | None, b: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Both lists filled up with zeros to the longer one, as `CTF` states their shapes with one letter."""
    if a is None or b is None:
        return a, b
    width = max(a.shape[1], b.shape[1])

    def filled(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, width - x.shape[1])))

    return filled(a), filled(b)
