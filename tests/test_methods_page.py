"""The page of methods names what exists: every function can be imported, every test file is there."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = "analysis|data|fourier|geometry|inference|models|nn|physics"
NAME = re.compile(rf"`((?:{FOLDERS})(?:\.\w+)+)`")
ROWS = [
    line
    for line in (ROOT / "docs" / "methods.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| Item")
]


def _resolve(dotted: str) -> bool:
    """Whether a dotted name below the package is a module or something in one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(["cryorbit", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            if not hasattr(thing, attribute):
                return False
            thing = getattr(thing, attribute)
        return True
    return False


def test_every_function_named_exists():
    """Dotted names in the tables."""
    names = {name for row in ROWS for name in NAME.findall(row)}
    assert len(names) > 30
    assert not [name for name in sorted(names) if not _resolve(name)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_test_file_named_exists(row):
    """In the folder named before it in the same cell; a row without a test says that nothing is built."""
    cell = row.split("|")[-2]
    folder = ""
    for path in re.findall(r"`([\w/]+(?:\.py|/))`", cell):
        folder = path.rpartition("/")[0] or folder
        assert (ROOT / "tests" / folder / path.rpartition("/")[2]).exists(), path
    if not cell.strip():
        assert "not built" in row or "below" in row


def test_a_missing_name_is_noticed():
    """The check itself can fail."""
    assert _resolve("geometry.distance.distance")
    assert not _resolve("geometry.distance.nearness")
    assert not _resolve("geometry.nowhere.distance")
