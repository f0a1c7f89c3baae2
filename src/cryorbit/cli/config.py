"""Settings from the command line and from YAML: the same dataclass, described once.

A verb's settings are a frozen dataclass; fields that are themselves dataclasses (the library's own settings)
are spread out, so that the command line and the YAML file are both flat.
"""

from __future__ import annotations

import dataclasses
import types
import typing
import warnings
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml

from cryorbit.errors import BadFile, BadInput

S = TypeVar("S")

Flat = tyro.conf.arg(name="")
"""Marks a field whose own fields join those of its owner: `Annotated[AbinitioSettings, Flat]`."""

NOT_SETTINGS = ("config", "print_config", "resume")
"""Options about the settings or the occasion, which are no settings."""

MAY_CHANGE = ("device", "threads", "checkpoint_every_s", "out")
"""Settings that a resumed run may be given anew."""


def parse(kind: type[S], arguments: Sequence[str], *, verb: str) -> S | None:
    """The settings that `arguments` ask for; None if they were only to be printed.

    A file named by `--config` replaces the defaults, the command line replaces both. With `--resume` the
    defaults are those of the run in the output folder, and must stay what they were. A verb with `PRESETS` has other
    defaults for some choices: {option: {its value: {setting: default}}}.

    Raises
    ------
    BadInput
        If the file has a key that is no setting or a wrong value, or a resumed run's settings differ.
    """
    printing = "--print-config" in arguments
    earlier = _settings_to_resume(kind, arguments)
    values = _preset(kind, arguments) | earlier | read_yaml(kind, _path_option(arguments, "--config"))
    default = build(kind, values, missing=None if printing else tyro.MISSING)
    with warnings.catch_warnings():
        if printing:  # required options may be absent then, which tyro would remark on
            warnings.simplefilter("ignore")
        settings = tyro.cli(kind, args=list(arguments), prog=f"cryorbit {verb}", default=default)
    if printing:
        print(to_yaml(settings), end="")
        return None
    if earlier:
        _refuse_changes(earlier, settings)
    return settings


def _path_option(arguments: Sequence[str], *names: str) -> Path | None:
    """The value of an option that must be known before parsing."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names and equals:
            return Path(value)
        if argument in names and position + 1 < len(arguments):
            return Path(arguments[position + 1])
    return None


def _preset(kind: type, arguments: Sequence[str]) -> dict[str, Any]:
    """Defaults that the choice of a preset brings along."""
    found: dict[str, Any] = {}
    for option, choices in getattr(kind, "PRESETS", {}).items():
        chosen = _path_option(arguments, option)
        found |= {} if chosen is None else choices.get(str(chosen), {})
    return found


def _settings_to_resume(kind: type, arguments: Sequence[str]) -> dict[str, Any]:
    out = _path_option(arguments, "-o", "--out")
    if "--resume" not in arguments or "resume" not in hints(kind) or out is None:
        return {}
    path = out / "settings.yaml"
    return read_yaml(kind, path) if path.exists() else {}


def _refuse_changes(earlier: dict[str, Any], settings: Any) -> None:
    now = flatten(settings)
    for name, value in earlier.items():
        before, after = _plain(value), now[name]
        if isinstance(value, Path) and isinstance(after, str):
            before, after = str(value.absolute()), str(Path(after).absolute())
        if before != after and name not in MAY_CHANGE:
            raise BadInput(
                f"--resume: the run was started with {name} {before}, not {after}. "
                "Leave that option out, or start a new run in another folder."
            )


def hints(kind: type) -> dict[str, Any]:
    """Field name -> its type, without tyro's markers."""
    return {name: _bare(hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}


def _bare(hint: Any) -> Any:
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return hint


def flat_fields(kind: type) -> dict[str, Any]:
    """Every option's name -> its type, those of nested settings included.

    Raises
    ------
    TypeError
        If two nested settings share a name: then one option would set one of them only.
    """
    found: dict[str, Any] = {}
    types_of = hints(kind)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        hint = types_of[field.name]
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        more = flat_fields(hint) if nested else {field.name: hint}
        twice = found.keys() & more.keys()
        if twice:
            raise TypeError(f"{kind.__name__}: two settings are named {', '.join(sorted(twice))}")
        found |= more
    return found


def flatten(settings: Any) -> dict[str, Any]:
    """Option name -> value, in plain types that YAML can hold; options about the settings left out."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value)
        elif field.name not in NOT_SETTINGS:
            flat[field.name] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def to_yaml(settings: Any) -> str:
    """The settings as YAML, one line per option; a required one that is not given is left out."""
    types_of = flat_fields(type(settings))
    flat = {k: v for k, v in flatten(settings).items() if v is not None or _may_be_none(types_of[k])}
    lines = [
        yaml.safe_dump({k: v}, default_flow_style=None, allow_unicode=True, width=1000)
        for k, v in flat.items()
    ]
    return "".join(line[1:-2] + "\n" if line.startswith("{") else line for line in lines)


def _may_be_none(hint: Any) -> bool:
    return type(None) in typing.get_args(_bare(hint))


def read_yaml(kind: type, path: Path | None) -> dict[str, Any]:
    """Option name -> value of the right type, from a YAML file; {} for no file.

    Raises
    ------
    BadFile, BadInput
        If the file cannot be read, or has an unknown key or a value of the wrong kind.
    """
    if path is None:
        return {}
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BadFile(f"{path}: no readable settings ({reason}). --print-config shows the form.") from error
    if not isinstance(values, dict):
        raise BadFile(f"{path}: wanted `name: value` lines. --print-config shows the form.")
    known = flat_fields(kind)
    unknown = [str(key) for key in values if key not in known or key in NOT_SETTINGS]
    if unknown:
        raise BadInput(f"{path}: no setting is named {', '.join(unknown)}. --print-config lists them all.")
    return {key: coerce(value, known[key], f"{path}: {key}") for key, value in values.items()}


def build(kind: type[S], values: dict[str, Any], *, missing: Any) -> S:
    """An instance of `kind` from flat values; what has neither value nor default becomes `missing`."""
    given: dict[str, Any] = {}
    types_of = hints(kind)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        hint, default = types_of[field.name], _default(field)
        if dataclasses.is_dataclass(hint) and default is not MISSING:
            changed = {name: value for name, value in values.items() if name in hints(type(default))}
            given[field.name] = dataclasses.replace(default, **changed)
        elif field.name in values:
            given[field.name] = values[field.name]
        else:
            given[field.name] = missing if default is MISSING else default
    # Not through __init__: `missing` is of no field's type, and is only ever read by the parser.
    settings = object.__new__(kind)
    for name, value in given.items():
        object.__setattr__(settings, name, value)
    return settings


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def coerce(value: Any, hint: Any, where: str) -> Any:
    """A YAML value as the type a setting wants.

    >>> coerce([1, 2], tuple[float, float], "defocus_um")
    (1.0, 2.0)

    Raises
    ------
    BadInput
        If it cannot be one; `where` names the file and key.
    """
    hint = _bare(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, inner, where)
    if origin is Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        each = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(each) == len(value):
            return tuple(coerce(v, h, where) for v, h in zip(value, each, strict=True))
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    wanted = " or ".join(map(str, inner)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise BadInput(f"{where}: {value!r} is no {wanted}. Correct that line.")


def _coerce_union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    tried = [choice for choice in choices if choice is not type(None)]
    for choice in tried[:-1]:
        try:
            return coerce(value, choice, where)
        except BadInput:
            continue
    return coerce(value, tried[-1], where)
