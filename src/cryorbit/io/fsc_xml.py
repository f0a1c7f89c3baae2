"""FSC curves in the XML form that EMDB takes at deposition."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from xml.etree import ElementTree

from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path

_X_AXIS, _Y_AXIS = "Resolution (A-1)", "Correlation Coefficient"


def write_fsc_xml(
    path: str | os.PathLike[str],
    frequency_per_A: Sequence[float],
    correlation: Sequence[float],
    *,
    title: str = "",
) -> None:
    """Write one curve as EMDB's `fsc` element: `coordinate` elements of `x` (1/A) and `y`.

    Raises
    ------
    BadFile
        If the disk refuses.
    BadInput
        If the lists differ in length or hold something that is no number.
    """
    if len(frequency_per_A) != len(correlation):
        raise BadInput(f"{path}: {len(frequency_per_A)} frequencies but {len(correlation)} correlations.")
    root = ElementTree.Element("fsc", {"title": title, "xaxis": _X_AXIS, "yaxis": _Y_AXIS})
    for x, y in zip(frequency_per_A, correlation, strict=True):
        if not math.isfinite(x + y):
            raise BadInput(f"{path}: ({x}, {y}) is no point of a curve. Look for the step that made it.")
        point = ElementTree.SubElement(root, "coordinate")
        ElementTree.SubElement(point, "x").text = f"{x:.6f}"
        ElementTree.SubElement(point, "y").text = f"{y:.6f}"
    ElementTree.indent(root)
    with atomic_path(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="UTF-8", xml_declaration=True)


def read_fsc_xml(path: str | os.PathLike[str]) -> tuple[list[float], list[float]]:
    """Frequencies (1/A) and correlations of an EMDB FSC file.

    Raises
    ------
    BadFile
        If it is no such file.
    """
    try:
        root = ElementTree.parse(path).getroot()
        points = [(float(p.findtext("x", "")), float(p.findtext("y", ""))) for p in root.iter("coordinate")]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise BadFile(f"{path}: not a readable FSC file of EMDB ({error}). Give another file.") from error
    if root.tag != "fsc" or not points:
        raise BadFile(f"{path}: has no <fsc> element with coordinates. Give an FSC file as EMDB writes it.")
    return [x for x, _ in points], [y for _, y in points]
