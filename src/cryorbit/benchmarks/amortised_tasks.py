"""What the amortised benchmark runs: methods, scales, caps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from cryorbit.errors import BadInput

Scale = Literal["small", "full"]

COMMON: dict[str, Any] = {"batch": 16, "hypotheses": 4}
GAUSS_NEWTON: dict[str, Any] = {"refinement": 3, "winners": 4}
ONE_WINNER: dict[str, Any] = {"winners": 1, "first_temperature": 1.0, "march": 0.8}
METHODS: dict[str, dict[str, Any]] = {
    "standard L_sym, as published": {"encoder": "standard", "loss": "sym", "frozen_shift_head": True},
    "standard L_sym": {"encoder": "standard", "loss": "sym"},
    "C4 L2": {"encoder": "c4", "loss": "l2"},
    "C4 L_mir": {"encoder": "c4", "loss": "mirror"},
    "D4 L2": {"encoder": "d4", "loss": "l2"},
    "D4 L2, Gauss-Newton": {"encoder": "d4", "loss": "l2", **GAUSS_NEWTON},
    "D4-regular softmin": {"encoder": "d4-regular", "loss": "softmin", **ONE_WINNER},
    "D4-regular softmin, Gauss-Newton": {"encoder": "d4-regular", "loss": "softmin", **GAUSS_NEWTON},
    "hybrid": {"encoder": "d4-regular", "loss": "softmin", "teacher": 0.2},
    "D4 L2, FourierNet": {"encoder": "d4", "loss": "l2", "decoder": "fouriernet"},
}
"""Settings of each method beyond those that all share.

Gauss-Newton: poses take damped Gauss-Newton steps from where the encoder put them, and the encoder learns where they came
to; nothing is searched. Without it the encoder follows the gradient of the misfit through its poses, as published.
"""


@dataclass(frozen=True, kw_only=True)
class AmortisedBenchmark:
    """What every run of the benchmark may use."""

    box_px: int = 32
    """Images are cropped in Fourier space to this box."""
    width: float = 0.25
    """Channels of the encoders relative to the published ones."""
    max_visits: int = 60_000
    """Images compared with the map, at most, by a run."""
    max_seconds: float = 600.0
    """Seconds of training of a run at most; evaluation is not counted."""
    method: tuple[str, ...] = ()
    """Methods to run, by name or the beginning of it; all of them unless given."""
    scale: Scale = "small"
    """small: as the options say; full: 100,000 images of 128 px, full width, 6000 s, as published."""
    to_the_end: bool = False
    """Go on to the cap after a run has converged."""


def full_scale(settings: AmortisedBenchmark) -> AmortisedBenchmark:
    """The published scale, for an accelerator or a patient CPU: 128 px, full width, 6000 s as in Table 1."""
    return replace(settings, scale="full", box_px=128, width=1.0, max_visits=3_000_000, max_seconds=6000.0)


def methods_of(settings: AmortisedBenchmark) -> list[str]:
    """The methods asked for, in the order of the table.

    >>> methods_of(AmortisedBenchmark(method=("C4", "hybrid")))
    ['C4 L2', 'C4 L_mir', 'hybrid']
    """
    if not settings.method:
        return list(METHODS)
    for start in settings.method:
        if not any(name.startswith(start) for name in METHODS):
            raise BadInput(f"--method {start!r}: there is no such method. Known are {', '.join(METHODS)}.")
    return [
        name
        for name in METHODS
        if name in settings.method or any(name.startswith(m) for m in settings.method if m not in METHODS)
    ]
