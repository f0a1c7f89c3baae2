"""Equivariant encoders that know a run's map read its particles: what `demo` shows of them, kept for the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit.cli.reading import spread_rows

if TYPE_CHECKING:
    import torch

    from cryorbit.cli.progress import ProgressLike
    from cryorbit.data import ParticleStack, Pose, Volume
    from cryorbit.inference.predictor import PosePosterior, Predictor
    from cryorbit.report.data import NetworkReading

NETWORK = "network.safetensors"
"""What the encoders said; `demo` writes it, the report shows it."""
TRAINING_IMAGES = 12_000
READ = 256
"""Images that are read."""
SEARCHED = 8
"""Images that are searched as well, to count the poses that a search compares."""
TOP = 8
MOVES = {0: "as it is", 1: "turned by 90°", 2: "turned by 180°", 4: "mirrored"}
"""Elements of D4 that are shown."""
SHOWN = 2
"""Particles shown under each move."""
DRAWN = 6
"""Hypotheses drawn for each."""
CHECKED = 16
"""Images on which equivariance is measured."""


def read_by_network(
    folder: Path, stack: ParticleStack, volume: Volume, *, seed: int, tell: Callable[[ProgressLike], None]
) -> None:
    """Train an equivariant encoder on the map, take another that has it built in, and keep what they say of the particles.

    The stack has the poses that the run found; `tell` is given the records of the training.

    Raises
    ------
    BadInput
        If map and images do not go together.
    """
    from cryorbit.inference.predictor import Predictor
    from cryorbit.inference.slice_reader import SliceReader
    from cryorbit.inference.supervised import train_pose_model
    from cryorbit.inference.supervised_settings import SupervisedSettings
    from cryorbit.io.checkpoint import save_state

    assert stack.pose is not None
    model, even = None, stack.box - stack.box % 2
    settings = SupervisedSettings(
        box_px=min(32, even), map_px=min(64, even), max_images=TRAINING_IMAGES, seed=seed
    )
    for record in train_pose_model(stack, volume, settings):
        tell(record)
        model = record.result or model
    assert model is not None
    rows = spread_rows(len(stack), READ)
    predictor = Predictor(stack, model, seed=seed)
    exact = SliceReader(predictor)
    tensors: dict[str, torch.Tensor] = {}
    facts = []
    readers = (("exact slice encoder", exact.hypotheses), ("trained D4 encoder", predictor.hypotheses))
    for i, (name, read) in enumerate(readers):
        angles, numbers = _reading(predictor, read, rows, stack.pose[rows])
        tensors |= {f"{key}_{i}": value for key, value in angles.items()}
        facts.append({"name": name, **numbers})
    facts[1] |= {
        "weights": sum(p.numel() for p in model.encoder.parameters()),
        "training_images": model.facts.training["images"],
        "training_seconds": round(model.facts.training["seconds"], 1),
    }
    search = predictor.search(rows[:SEARCHED]).effort.poses
    for about in facts:
        about["evaluations_search"] = round(search / SEARCHED)
    moved, error = _moved(exact, rows[:CHECKED])
    save_state(folder / NETWORK, {**tensors, **moved}, {"readers": facts, "moved_error": error})


def _reading(
    predictor: Predictor, read: Callable[..., PosePosterior], rows: torch.Tensor, pose: Pose
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Angles of hypotheses and of refined poses from those of the run, with the speed and the evaluations."""
    import torch

    from cryorbit.geometry.rotations import geodesic_angle

    start = time.perf_counter()
    said = read(rows, top=TOP)
    seconds = time.perf_counter() - start
    refined = predictor.refine(rows, said)
    truth = pose.rotation.float()
    angles = {
        "hypothesis_deg": torch.rad2deg(geodesic_angle(said.rotation, truth[:, None])).float(),
        "refined_deg": torch.rad2deg(geodesic_angle(refined.found.rotation, truth)).float(),
    }
    return angles, {
        "images_per_second": round(len(rows) / seconds),
        "evaluations": round(refined.effort.poses / len(rows)),
    }


def _moved(exact: Any, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], float]:
    """The surest images under some moves with their hypotheses, and how far all moves are from moving the answer."""
    import torch

    from cryorbit.inference.slice_reader import moved_images, moved_rows

    images, ctf = exact.images(rows)
    still = exact.predict(images, ctf).logits.softmax(1)
    shown = still.amax(1).topk(SHOWN).indices
    parts: dict[str, list[torch.Tensor]] = {"images": [], "rotation": [], "probability": [], "centre_px": []}
    worst = 0.0
    for g in range(8):
        turned = moved_images(images, g)
        said = exact.predict(turned, ctf)
        p = said.logits.softmax(1)
        worst = max(worst, float((p - still[:, moved_rows(exact.encoder.grid, g)]).abs().max()))
        if g in MOVES:
            top = said.top(DRAWN)
            parts["images"].append(turned[shown])
            parts["rotation"].append(top.rotation[shown])
            parts["probability"].append(p.topk(DRAWN, 1).values[shown])
            parts["centre_px"].append(top.shift_px[shown, 0])
    return {f"moved_{name}": torch.stack(v, 1).contiguous() for name, v in parts.items()}, worst


def of_network(folder: Path) -> NetworkReading | None:
    """What `read_by_network` kept, if it was run.

    Raises
    ------
    BadFile
        If the file is not whole.
    """
    from cryorbit.errors import BadFile
    from cryorbit.io.checkpoint import load_state
    from cryorbit.report.data import NetworkReading, Reader

    if not (folder / NETWORK).exists():
        return None
    tensors, meta = load_state(folder / NETWORK)
    if "readers" not in meta or "moved_images" not in tensors:
        raise BadFile(f"{folder / NETWORK}: not what the demo writes. Remove it.")
    readers = tuple(
        Reader(
            name=about.pop("name"),
            hypothesis_deg=tensors[f"hypothesis_deg_{i}"],
            refined_deg=tensors[f"refined_deg_{i}"],
            facts=about,
        )
        for i, about in enumerate(meta["readers"])
    )
    moved = {name: value for name, value in tensors.items() if name.startswith("moved_")}
    return NetworkReading(
        readers=readers, moves=tuple(MOVES.values()), moved_error=meta["moved_error"], **moved
    )
