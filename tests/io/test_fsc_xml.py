"""Laws of EMDB's FSC files."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from cryorbit.errors import BadFile, BadInput
from cryorbit.io.fsc_xml import read_fsc_xml, write_fsc_xml


def test_what_is_written_is_read(tmp_path):
    """Six decimals of both axes, and the attributes that EMDB's form asks for."""
    path = tmp_path / "fsc.xml"
    write_fsc_xml(path, [0.0, 0.0125, 0.025], [1.0, 0.9, -0.012346], title="map & mask <1>")
    assert read_fsc_xml(path) == ([0.0, 0.0125, 0.025], [1.0, 0.9, -0.012346])
    root = ElementTree.parse(path).getroot()
    expected = {"title": "map & mask <1>", "xaxis": "Resolution (A-1)", "yaxis": "Correlation Coefficient"}
    assert root.attrib == expected
    assert [child.tag for child in root] == ["coordinate"] * 3
    assert [child.tag for child in root[0]] == ["x", "y"]


def test_no_curve_is_refused(tmp_path):
    """Lists of two lengths, NaN, and files of another kind."""
    path = tmp_path / "fsc.xml"
    with pytest.raises(BadInput, match="2 frequencies but 1"):
        write_fsc_xml(path, [0.0, 0.1], [1.0])
    with pytest.raises(BadInput, match="no point"):
        write_fsc_xml(path, [0.0], [float("nan")])
    assert not path.exists()
    path.write_text("<other/>")
    with pytest.raises(BadFile, match="no <fsc> element"):
        read_fsc_xml(path)
    path.write_text("no xml")
    with pytest.raises(BadFile, match="not a readable"):
        read_fsc_xml(path)
