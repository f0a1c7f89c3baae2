from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
import yaml

from cryorbit.cli.config import Flat, build, flat_fields, flatten, parse, to_yaml
from cryorbit.cli.options import ConfigOptions, OutFolder
from cryorbit.errors import BadFile, BadInput


@dataclass(frozen=True, kw_only=True)
class Inner:
    symmetry: str = "C1"
    """Point group."""
    defocus_um: tuple[float, float] = (1.0, 3.0)
    """Range."""
    tolerance: float = 0.5
    """A small number."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A verb."""

    particles: tyro.conf.Positional[Path | None] = None
    """Input."""
    out: OutFolder
    """Folder."""
    resume: bool = False
    """Go on."""
    origins: Literal["auto", "pixels"] = "auto"
    """A choice."""
    inner: Annotated[Inner, Flat] = field(default_factory=Inner)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def settings_of(*arguments: str) -> Settings:
    settings = parse(Settings, arguments, verb="verb")
    assert settings is not None
    return settings


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    """--config replaces defaults, the command line replaces both."""
    file = write(tmp_path / "a.yaml", "symmetry: O\ntolerance: 1e-3\ndefocus_um: [2, 4]\n")
    settings = settings_of("x.star", "-o", "d", "--config", str(file), "--symmetry", "D2")
    assert settings.inner == Inner(symmetry="D2", defocus_um=(2.0, 4.0), tolerance=1e-3)


def test_printed_settings_read_back_the_same(tmp_path):
    """--config of what --print-config printed changes nothing."""
    settings = settings_of("x.star", "-o", "d", "--symmetry", "T", "--origins", "pixels")
    file = write(tmp_path / "a.yaml", to_yaml(settings))
    again = settings_of("--config", str(file))
    assert flatten(again) == flatten(settings)


def test_print_config_prints_yaml_even_without_required_options(capsys):
    """--print-config alone shows every default."""
    assert parse(Settings, ["--print-config", "--tolerance", "2"], verb="verb") is None
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["tolerance"] == 2.0
    assert "out" not in printed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("symetry: O\n", ["symetry", "a.yaml"]),
        ("tolerance: much\n", ["tolerance", "much", "a.yaml"]),
        ("origins: both\n", ["origins", "both"]),
        ("defocus_um: [1, 2, 3]\n", ["defocus_um"]),
        ("config: b.yaml\n", ["config"]),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, words):
    """An unknown key or a value of the wrong kind is an error that names file, key and value."""
    file = write(tmp_path / "a.yaml", text)
    with pytest.raises(BadInput) as caught:
        settings_of("-o", "d", "--config", str(file))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n"])
def test_a_file_that_is_no_settings_file_is_a_bad_file(tmp_path, text):
    """YAML that is not a mapping, or no YAML, is refused; so is a missing file."""
    with pytest.raises(BadFile):
        settings_of("-o", "d", "--config", str(write(tmp_path / "a.yaml", text)))
    with pytest.raises(BadFile):
        settings_of("-o", "d", "--config", str(tmp_path / "absent.yaml"))


def test_resume_takes_the_settings_of_the_folder(tmp_path):
    """`--resume` alone has the particles and all settings of the run that is resumed."""
    first = settings_of("x.star", "-o", str(tmp_path), "--symmetry", "O")
    write(tmp_path / "settings.yaml", to_yaml(first))
    again = settings_of("-o", str(tmp_path), "--resume")
    assert again.particles == Path("x.star")
    assert again.inner.symmetry == "O"


def test_resume_refuses_other_settings(tmp_path):
    """A resumed run cannot be given another symmetry half way."""
    first = settings_of("x.star", "-o", str(tmp_path), "--symmetry", "O")
    write(tmp_path / "settings.yaml", to_yaml(first))
    with pytest.raises(BadInput, match="symmetry"):
        settings_of("-o", str(tmp_path), "--resume", "--symmetry", "C4")


def test_two_settings_of_one_name_are_a_programming_error():
    """Flat options must have one meaning each."""

    @dataclass(frozen=True)
    class Twice:
        a: Inner
        b: Inner

    with pytest.raises(TypeError, match="symmetry"):
        flat_fields(Twice)


def test_build_leaves_what_is_missing_to_the_parser():
    """A required field without value becomes the given marker."""
    assert build(Settings, {}, missing=tyro.MISSING).out is tyro.MISSING
