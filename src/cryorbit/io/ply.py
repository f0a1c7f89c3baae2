"""GaussianEM's `.ply` files, and the cfg that says what their numbers mean -> `Gaussians`.

A binary table of vertices: x y z nx ny nz density scale_0 rot_0 ... rot_3, as float32. Positions are in half boxes
from the middle; scale goes through a sigmoid between the cfg's scale_min and scale_max (times the edge sVoxel), density,
the height of the peak, through softplus; nx ny nz are 0, and the quaternion is fixed at identity. The cfg is JSON:
{"bbox", "cfg": {nVoxel, sVoxel, pixelSize, scale_min, scale_max, ...}}.

GaussianEM draws with its origin half a pixel below pixel N // 2 on each axis, while it places Gaussians by a map's voxels
and takes poses from RELION. `origin` says which of the two a file is read by.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cryorbit.data import Gaussians
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path
from cryorbit.io.compressed import read_plain

Origin = Literal["voxels", "rasteriser"]

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_WANTED = ("x", "y", "z", "density", "scale_0")
_WRITTEN = ("x", "y", "z", "nx", "ny", "nz", "density", "scale_0", "rot_0", "rot_1", "rot_2", "rot_3")


@dataclass(frozen=True, kw_only=True)
class GaussianEMFrame:
    """What a GaussianEM cfg says of its `.ply`: box, pixel size, and the bounds of sigma in pixels."""

    box: int
    pixel_size_A: float
    least_px: float
    most_px: float

    def __post_init__(self) -> None:
        if not (self.box > 0 and self.pixel_size_A > 0 and 0 <= self.least_px < self.most_px):
            raise BadInput(
                f"GaussianEM cfg: box {self.box}, pixel size {self.pixel_size_A} A, sigma from {self.least_px} to "
                f"{self.most_px} px. Give a positive box and pixel size, and bounds with 0 <= least < most."
            )

    @property
    def unit_A(self) -> float:
        """Half a box."""
        return 0.5 * self.box * self.pixel_size_A

    def origin_A(self, origin: Origin) -> float:
        """Where position 0 lies from pixel N // 2, on each axis."""
        if origin not in ("voxels", "rasteriser"):
            raise BadInput(f"origin {origin!r} is not one of 'voxels', 'rasteriser'.")
        return 0.0 if origin == "voxels" else ((self.box - 1) / 2 - self.box // 2) * self.pixel_size_A


def read_gaussianem(
    path: str | os.PathLike[str], cfg: str | os.PathLike[str], *, origin: Origin = "voxels"
) -> Gaussians:
    """Read a GaussianEM point cloud, plain or compressed, with the cfg it was made with.

    Parameters
    ----------
    origin
        "voxels": position 0 is pixel N // 2, where GaussianEM's preprocessing puts it. "rasteriser": where its renderer
        draws it, half a pixel lower when the box is even; for clouds whose positions were trained on images.

    Raises
    ------
    BadFile
        If a file is missing, broken, or lacks a field, or a row is not finite.
    """
    frame = read_gaussianem_cfg(cfg)
    table = _read_vertices(path)
    missing = [name for name in _WANTED if name not in (table.dtype.names or ())]
    if missing:
        raise BadFile(f"{path}: the vertices have no {', '.join(missing)}. Give a point cloud of GaussianEM.")
    columns = torch.from_numpy(np.stack([table[name].astype(np.float64) for name in _WANTED], 1))
    bad = ~torch.isfinite(columns).all(1)
    if bool(bad.any()):
        row = int(torch.nonzero(bad)[0, 0])
        raise BadFile(f"{path}: vertex {row} is not finite. Remove that row, or train again.")
    position = columns[:, :3] * frame.unit_A + frame.origin_A(origin)
    sigma = frame.pixel_size_A * (
        frame.least_px + (frame.most_px - frame.least_px) * torch.sigmoid(columns[:, 4])
    )
    height = torch.nn.functional.softplus(columns[:, 3], threshold=40.0)
    amplitude = height * (2 * math.pi) ** 1.5 * sigma**3
    return Gaussians(position.float(), amplitude.float(), sigma.float())


def write_gaussianem(
    path: str | os.PathLike[str],
    cfg: str | os.PathLike[str],
    gaussians: Gaussians,
    frame: GaussianEMFrame,
    *,
    origin: Origin = "voxels",
) -> None:
    """Write a point cloud and a cfg in GaussianEM's layout; each file whole or not at all.

    The cfg holds what a cloud needs, not the sizes of a network. Bounds that no Gaussian touches keep every width.

    Raises
    ------
    BadInput
        If a Gaussian is anisotropic, has no positive amplitude, or a width outside the frame's bounds.
    BadFile
        If the disk refuses.
    """
    if not gaussians.isotropic or gaussians.conformations is not None:
        raise BadInput(
            "GaussianEM's layout holds one isotropic conformation. Choose one, or save as .safetensors."
        )
    sigma = gaussians.width_A.detach().double().cpu()
    amplitude = gaussians.amplitude.detach().double().cpu()
    share = (sigma / frame.pixel_size_A - frame.least_px) / (frame.most_px - frame.least_px)
    _refuse(
        ~((share > 0) & (share < 1)),
        f"sigma outside {frame.least_px} to {frame.most_px} px",
        "Widen the bounds.",
    )
    _refuse(~(amplitude > 0), "no positive amplitude", "Drop it: GaussianEM's densities are positive.")
    height = amplitude / ((2 * math.pi) ** 1.5 * sigma**3)
    position = gaussians.position_A.detach().double().cpu() - frame.origin_A(origin)
    rows = np.zeros(len(gaussians), dtype=[(name, "<f4") for name in _WRITTEN])
    for axis, name in enumerate("xyz"):
        rows[name] = position[:, axis].numpy() / frame.unit_A
    rows["density"] = (height + torch.log(-torch.expm1(-height))).numpy()  # softplus undone
    rows["scale_0"] = torch.logit(share).numpy()
    rows["rot_0"] = 1
    header = "\n".join(
        ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
        + [f"property float {name}" for name in _WRITTEN]
        + ["end_header\n"]
    )
    with atomic_path(path) as part:
        part.write_bytes(header.encode("ascii") + rows.tobytes())
    with atomic_path(cfg) as part:
        part.write_text(json.dumps(_cfg_of(frame)), encoding="utf-8")


def read_gaussianem_cfg(path: str | os.PathLike[str]) -> GaussianEMFrame:
    """Box, pixel size and bounds of a GaussianEM cfg.

    Raises
    ------
    BadFile
        If it is no such file, or a number is missing or impossible.
    """
    try:
        cfg = json.loads(read_plain(path))["cfg"]
        box, edge = int(cfg["nVoxel"][0]), float(max(cfg["sVoxel"]))
        return GaussianEMFrame(
            box=box,
            pixel_size_A=float(cfg["pixelSize"]),
            least_px=float(cfg["scale_min"]) * edge * box / 2,
            most_px=float(cfg["scale_max"]) * edge * box / 2,
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadFile(
            f"{path}: not a GaussianEM cfg ({error!s}). It is JSON with cfg: nVoxel, sVoxel, pixelSize, scale_min, "
            "scale_max."
        ) from error


def _cfg_of(frame: GaussianEMFrame) -> dict[str, Any]:
    edge = 2.0
    return {
        "bbox": [[-1, -1, -1], [1, 1, 1]],
        "cfg": {
            "mode": "parallel",
            "nVoxel": [frame.box] * 3,
            "sVoxel": [edge] * 3,
            "offOrigin": [0, 0, 0],
            "pixelSize": frame.pixel_size_A,
            "scale_min": frame.least_px / frame.box,
            "scale_max": frame.most_px / frame.box,
        },
    }


def _refuse(bad: Tensor, what: str, remedy: str) -> None:
    if bool(bad.any()):
        raise BadInput(f"write_gaussianem: Gaussian {int(torch.nonzero(bad)[0, 0])} has {what}. {remedy}")


def _read_vertices(path: str | os.PathLike[str]) -> np.ndarray:
    """The element `vertex` of a PLY file as a structured array; it must come first and hold plain numbers."""
    raw = read_plain(Path(path))
    head, found, body = raw.partition(b"end_header")
    if not raw.startswith(b"ply") or not found:
        raise BadFile(f"{path}: not a PLY file (it begins with {raw[:6]!r}). Give a point_cloud.ply.")
    body = body[2:] if body.startswith(b"\r\n") else body[1:]
    form, count, fields, element = "", 0, [], 0
    for words in (line.split() for line in head.decode("ascii", errors="replace").splitlines()):
        if words[:1] == ["format"] and len(words) > 1:
            form = words[1]
        elif words[:1] == ["element"]:
            element += 1
            if element == 1 and (len(words) < 3 or words[1] != "vertex" or not words[2].isdigit()):
                raise BadFile(f"{path}: its first element is not a list of vertices. Give a point_cloud.ply.")
            count = int(words[2]) if element == 1 else count
        elif words[:1] == ["property"] and element == 1:
            if len(words) != 3 or words[1] not in _TYPES:
                raise BadFile(f"{path}: cannot read {' '.join(words)!r}. Give a point_cloud.ply.")
            fields.append((words[2], _TYPES[words[1]]))
    if form == "ascii":
        return _ascii_rows(path, body, count, fields)
    if form not in ("binary_little_endian", "binary_big_endian"):
        raise BadFile(f"{path}: PLY format {form!r} is not known. Write it as binary_little_endian.")
    dtype = np.dtype(fields).newbyteorder("<" if form == "binary_little_endian" else ">")
    if len(body) < count * dtype.itemsize:
        have = len(body) // max(1, dtype.itemsize)
        raise BadFile(f"{path}: cut short: {count} vertices announced, {have} there. Copy the file again.")
    return np.frombuffer(body, dtype=dtype, count=count)


def _ascii_rows(
    path: str | os.PathLike[str], body: bytes, count: int, fields: list[tuple[str, str]]
) -> np.ndarray:
    lines = body.decode("ascii", errors="replace").splitlines()[:count]
    if len(lines) < count:
        raise BadFile(
            f"{path}: cut short: {count} vertices announced, {len(lines)} there. Copy the file again."
        )
    table = np.zeros(count, dtype=fields)
    for row, line in enumerate(lines):
        try:
            table[row] = tuple(float(word) for word in line.split())
        except ValueError as error:
            raise BadFile(
                f"{path}: vertex {row} is not {len(fields)} numbers. Correct or remove that row."
            ) from error
    return table
