"""The folder of a pose model: weights.safetensors, model.json, map.mrc, training.csv. No pickle anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit.errors import BadFile, BadInput

if TYPE_CHECKING:
    from cryorbit.inference.pose_model import PoseModel

WEIGHTS, FACTS, MAP, TRAINING = "weights.safetensors", "model.json", "map.mrc", "training.csv"
OF_A_MODEL = (WEIGHTS, FACTS, MAP, TRAINING)


def write_model(folder: Path, model: PoseModel, *, sources: dict[str, Any]) -> None:
    """Write the model; `model.json` comes last, so that a folder that has it is whole.

    Raises
    ------
    BadFile
        If the disk refuses.
    """
    from cryorbit.cli.run_folder import write_json
    from cryorbit.inference.pose_model import describe
    from cryorbit.io.checkpoint import save_state
    from cryorbit.io.mrc import write_map

    weights, facts = describe(model)
    save_state(folder / WEIGHTS, weights, {"format": facts["format"]})
    write_map(folder / MAP, model.map)
    write_json(folder / FACTS, facts | {"sources": sources})


def read_model(folder: Path) -> PoseModel:
    """The model of a folder that `cryorbit poses train` left.

    Raises
    ------
    BadFile
        Naming the file that is missing, broken or of another version.
    """
    from cryorbit.inference.pose_model import rebuild
    from cryorbit.io.checkpoint import load_state
    from cryorbit.io.mrc import read_map

    if not folder.is_dir():
        raise BadFile(f"{folder}: there is no such folder. Give the folder that `cryorbit poses train` made.")
    missing = [name for name in (FACTS, WEIGHTS, MAP) if not (folder / name).exists()]
    if missing:
        raise BadFile(
            f"{folder}: no {', '.join(missing)}: not a finished pose model. Go on with `cryorbit poses train -o "
            f"{folder} --resume`, or train it anew."
        )
    facts = read_facts(folder / FACTS)
    try:
        weights, _ = load_state(folder / WEIGHTS)
    except BadFile as error:
        raise BadFile(
            f"{folder / WEIGHTS}: not whole ({_reason(error)}). Copy or train the model again."
        ) from error
    volume = read_map(folder / MAP)
    try:
        return rebuild(weights, facts, volume)
    except BadInput as error:
        raise BadFile(f"{folder / FACTS}: {error}") from error


def read_facts(path: Path) -> dict[str, Any]:
    """The plain values of model.json without those for people alone.

    Raises
    ------
    BadFile
        If it is no JSON object.
    """
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: unreadable ({error}). Copy or train the model again.") from error
    if not isinstance(facts, dict):
        raise BadFile(f"{path}: wanted a JSON object. Copy or train the model again.")
    facts.pop("sources", None)
    return facts


def _reason(error: BadFile) -> str:
    text = str(error)
    return text[text.find("(") + 1 : text.rfind(")")] if "(" in text else "no Cryorbit checkpoint"


def write_training_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """training.csv from the rows of metrics.jsonl: one line per record.

    Raises
    ------
    BadFile
        If the disk refuses.
    """
    from cryorbit.cli.run_folder import write_text

    columns = {"step": "images", "loss": "loss", "learning_rate": "learning_rate", "seconds": "seconds"}
    lines = [",".join(columns.values())]
    lines += [",".join(str(row[name]) for name in columns) for row in rows if all(n in row for n in columns)]
    write_text(folder / TRAINING, "\n".join(lines) + "\n")
