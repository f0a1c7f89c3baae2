"""Arrows for ChimeraX: the BILD format, one object per line of text."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_COLOURS = ((0.12, 0.37, 0.60), (0.85, 0.51, 0.17), (0.72, 0.23, 0.20))
"""From the shortest arrow to the longest: blue, orange, red."""


def arrows(
    start_A: Float[Tensor, "n 3"], end_A: Float[Tensor, "n 3"], *, width_A: float, least_A: float = 0.0
) -> str:
    """Arrows from point to point as the text of a .bild file, coloured by length, shorter ones than `least_A` left out.

    >>> print(arrows(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 5.0]]), width_A=0.5).splitlines()[-1])
    .arrow 0.000 0.000 0.000 0.000 0.000 5.000 0.50 1.00 0.70
    """
    length = (end_A - start_A).norm(dim=1)
    lines = [
        f".comment {len(length)} arrows, longest {float(length.max()) if len(length) else 0:.1f} angstrom"
    ]
    share = length / length.max().clamp_min(1e-9) if len(length) else length
    for k in torch.nonzero(length >= least_A)[:, 0].tolist():
        red, green, blue = _colour(float(share[k]))
        ends = " ".join(f"{v:.3f}" for v in (*start_A[k].tolist(), *end_A[k].tolist()))
        lines += [
            f".color {red:.3f} {green:.3f} {blue:.3f}",
            f".arrow {ends} {width_A:.2f} {2 * width_A:.2f} 0.70",
        ]
    return "\n".join(lines) + "\n"


def _colour(share: float) -> tuple[float, ...]:
    place = share * (len(_COLOURS) - 1)
    below = min(int(place), len(_COLOURS) - 2)
    mix = place - below
    return tuple((1 - mix) * a + mix * b for a, b in zip(_COLOURS[below], _COLOURS[below + 1], strict=True))
