"""The equivariance table: how far every layer and encoder is from its law, element by element, in both precisions.

A law with a bound holds to round-off or the row says FAILS; a row without bound is a measurement. Beside it the
poster's protocol (CryoSphere): mean squared differences of probability maps, which a prediction that knows nothing
passes best, and therefore with the entropy next to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.geometry.groups import act_on_images, act_on_rotation
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.models.pose_encoder import PosePrediction

ROUND_OFF = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Bound of exact laws, relative."""
D4_NAMES = ("0", "90", "180", "270", "m", "m90", "m180", "m270")
"""Turns in degrees; m is y -> -y, before the turn."""
SPREAD_RAD = math.radians(15)
"""Width of the kernel by which hypotheses become a probability map."""


@dataclass(frozen=True)
class Check:
    """A law that a layer or encoder should obey: relative errors, one per element, in a given precision."""

    subject: str
    elements: tuple[str, ...]
    errors: Callable[[torch.dtype], Sequence[float]]
    exact: bool = True
    """Whether round-off is promised; else the error is only measured."""
    must_fail: bool = False
    """A control, which shows that the table can tell."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    subject: str
    precision: str
    elements: tuple[str, ...]
    errors: tuple[float, ...]
    bound: float | None
    must_fail: bool

    @property
    def worst(self) -> float:
        """Largest error over the elements."""
        return max(self.errors)

    @property
    def verdict(self) -> str:
        """What the row says about its law."""
        if self.must_fail:
            return "fails, as it must" if self.worst > 1e-2 else "PASSES, but must fail"
        if self.bound is None:
            return "measured"
        return "holds" if self.worst <= self.bound else "FAILS"


def equivariance_rows(checks: Iterable[Check]) -> list[Row]:
    """Every check in float64 and float32."""
    rows = []
    for check in checks:
        for dtype, bound in ROUND_OFF.items():
            errors = tuple(float(e) for e in check.errors(dtype))
            name = str(dtype).removeprefix("torch.")
            limit = bound if check.exact else None
            rows.append(Row(check.subject, name, check.elements, errors, limit, check.must_fail))
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    """The table as text: one line per layer and precision, a column per element."""
    lines, elements = [], None
    for row in rows:
        if row.elements != elements:
            elements = row.elements
            head = " ".join(f"{name:>8s}" for name in elements)
            lines += ["", f"{'relative error, by element':42s} {'':8s} {head}    worst"]
        values = " ".join(f"{e:8.1e}" for e in row.errors)
        lines.append(f"{row.subject:42s} {row.precision:8s} {values} {row.worst:8.1e}  {row.verdict}")
    return "\n".join(lines[1:])


@dataclass(frozen=True)
class PosterRow:
    """The poster's protocol for one encoder: over images and elements, identity left out."""

    subject: str
    mse_mean: float
    mse_min: float
    mse_max: float
    relative_error: float
    """Norm of the difference of the maps over that of the maps."""
    entropy_nats: float
    """Mean, of the map's cells; log of their number where nothing is known."""
    cells: int


def probability_map(
    prediction: PosePrediction, cells: Float[Tensor, "c 3 3"], *, spread_rad: float = SPREAD_RAD
) -> Float[Tensor, "b c"]:
    """Hypotheses blurred by a kernel exp((cos angle - 1) / spread^2), on cells of SO(3); rows sum to 1."""
    flat, weight = cells.flatten(1), torch.softmax(prediction.logits, -1)
    rows = []
    for rotation, w in zip(prediction.rotation, weight, strict=True):
        cosine = (flat.to(rotation) @ rotation.flatten(1).mT - 1) / 2
        rows.append(torch.exp((cosine - 1) / spread_rad**2) @ w)
    values = torch.stack(rows)
    return values / values.sum(-1, keepdim=True)


def poster_row(
    subject: str,
    predict: Callable[[Tensor], PosePrediction],
    images: Float[Tensor, "b h h"],
    *,
    order: int = 2,
) -> PosterRow:
    """Map of the moved image against the moved map of the image, over D4 in the image plane.

    The poster turns the molecule instead; but how a prediction should follow that depends on the molecule's own frame,
    which the network has only seen in one position. Turns in the image plane are laws for every molecule.
    """
    cells = so3_grid(order).reshape(-1, 3, 3)
    with torch.no_grad():
        still = predict(images)
        first = probability_map(still, cells)
        squared, norms = [], []
        for g in range(1, 8):
            got = probability_map(predict(act_on_images(images, g)), cells)
            turned = act_on_rotation(still.rotation, g)
            want = probability_map(
                PosePrediction(turned, still.logits, still.shift_px, still.cell_fraction), cells
            )
            squared.append((got - want).square().mean(-1))
            norms.append(want.square().mean(-1))
    errors, size = torch.cat(squared), torch.cat(norms)
    entropy = -(first * first.clamp_min(1e-30).log()).sum(-1).mean()
    return PosterRow(
        subject,
        float(errors.mean()),
        float(errors.min()),
        float(errors.max()),
        float((errors.sum() / size.sum()).sqrt()),
        float(entropy),
        len(cells),
    )


def format_poster(rows: Sequence[PosterRow]) -> str:
    """The protocol's table as text."""
    lines = [
        f"{'probability maps':24s} {'mean MSE':>9s} {'min MSE':>9s} {'max MSE':>9s} {'relative':>9s}  entropy (nats)"
    ]
    for row in rows:
        lines.append(
            f"{row.subject:24s} {row.mse_mean:9.1e} {row.mse_min:9.1e} {row.mse_max:9.1e} {row.relative_error:9.1e}  "
            f"{row.entropy_nats:.2f} of {math.log(row.cells):.2f}"
        )
    return "\n".join(lines)


def knows_nothing(images: Float[Tensor, "b h h"]) -> PosePrediction:
    """The uniform prediction, on a grid: perfect by the poster's score."""
    grid = so3_grid(2).reshape(-1, 3, 3).to(images)
    b, k = len(images), len(grid)
    return PosePrediction(
        grid.expand(b, -1, 3, 3), images.new_zeros(b, k), images.new_zeros(b, 1, 2).expand(b, k, 2), 1 / k
    )


def main() -> None:
    """Print both tables; `python -m cryorbit.benchmarks.equivariance`."""
    from cryorbit.benchmarks.equivariance_checks import (
        encoder_checks,
        layer_checks,
        pictures,
        trained_encoders,
    )

    print(format_rows(equivariance_rows(layer_checks())), flush=True)
    encoders = trained_encoders()
    print("\n" + format_rows(equivariance_rows(encoder_checks(encoders))), flush=True)
    rows = [poster_row("uniform", knows_nothing, torch.zeros(1, 32, 32))]
    for name, encoder in encoders.items():
        images = pictures(16, encoder.box, seed=99).images
        rows.append(poster_row(name, encoder, images))
    print("\n" + format_poster(rows))


if __name__ == "__main__":
    main()
