"""Laws of the house itself: imports have no effects, checkers really check, floors are real folders."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "scipy", "pandas", "matplotlib", "tyro", "rich")


def test_importing_cryorbit_is_light_and_touches_nothing(tmp_path):
    """`import cryorbit` imports nothing heavy and leaves an empty folder empty."""
    code = "import sys, json, cryorbit; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout)
    assert not [name for name in HEAVY if name in loaded]
    assert list(tmp_path.iterdir()) == []


def test_the_front_door_is_light(tmp_path):
    """`cryorbit --help` needs neither torch nor the parser."""
    code = (
        "import sys; from cryorbit.cli.main import main; main(['--help']);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'tyro')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0


def test_every_folder_has_a_floor():
    """Each package of the library is named in the floors' contract."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    named = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    folders = {path.parent.name for path in (ROOT / "src" / "cryorbit").glob("*/__init__.py")}
    assert folders == named


@pytest.mark.slow
def test_the_type_checker_rejects_a_canary(tmp_path):
    """basedpyright, run as in CI, fails on a file with a type error: it is not decoration."""
    checker = Path(sys.executable).with_name("basedpyright")
    if not checker.exists():
        pytest.skip("basedpyright is not installed beside this Python")
    canary = tmp_path / "canary.py"
    canary.write_text("def length(text: str) -> int:\n    return text\n")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
    settings["include"] = ["canary.py"]
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run([checker, "-p", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "canary.py" in done.stdout


def test_the_type_checker_looks_at_the_library():
    """The checker's include is a folder that exists and holds the library."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
    assert all((ROOT / folder / "__init__.py").exists() for folder in settings["include"])


def test_shapes_are_checked_in_this_run():
    """The suite runs with shapes checked: a wrong shape is refused at the call."""
    torch = pytest.importorskip("torch")
    from cryorbit.geometry.rotations import quaternion_to_matrix

    with pytest.raises(Exception, match=r"(?i)type-check|beartype|violates"):
        quaternion_to_matrix(torch.zeros(2, 3))
