"""What the amortised benchmark runs: methods, scales, caps."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
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
class Sizes:
    """How large a run of the benchmark is."""

    n_particles: int
    box_px: int
    width: float
    max_visits: int
    max_seconds: float


SCALES: dict[Scale, Sizes] = {
    "small": Sizes(n_particles=10_000, box_px=32, width=0.25, max_visits=60_000, max_seconds=600.0),
    "full": Sizes(n_particles=100_000, box_px=128, width=1.0, max_visits=3_000_000, max_seconds=6000.0),
}
"""What a run is unless its options say otherwise; "full" is that of the published Table 1."""


@dataclass(frozen=True, kw_only=True)
class AmortisedBenchmark:
    """What every run of the benchmark may use."""

    box_px: int | None = None
    """Images are cropped in Fourier space to this box; 32 unless given, at full scale 128."""
    width: float | None = None
    """Channels of the encoders relative to the published ones; 0.25 unless given, at full scale 1."""
    max_visits: int | None = None
    """Images compared with the map, at most, by a run; 60,000 unless given, at full scale 3,000,000."""
    max_seconds: float | None = None
    """Seconds of training of a run at most, evaluation not counted; 600 unless given, at full scale 6000."""
    method: tuple[str, ...] = ()
    """Methods to run, by name or the beginning of it; all of them unless given."""
    scale: Scale = "small"
    """small: 32 px, a quarter of full width, 10 minutes; full: 100,000 images of 128 px, full width, 6000 s, as
    published. Options that are given hold at both."""
    to_the_end: bool = False
    """Go on to the cap after a run has converged."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where encoders compute; auto takes a GPU if there is one."""

    @property
    def sizes(self) -> Sizes:
        """What was given, and the scale's own for the rest.

        >>> AmortisedBenchmark(scale="full", width=0.5).sizes
        Sizes(n_particles=100000, box_px=128, width=0.5, max_visits=3000000, max_seconds=6000.0)
        """
        given = {f.name: getattr(self, f.name, None) for f in fields(Sizes)}
        return replace(SCALES[self.scale], **{k: v for k, v in given.items() if v is not None})


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
