"""Scores of maps, and of samples of maps, against the truth: correlation, coverage, whether spread tells error."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata
from scipy.stats import t as student
from torch import Tensor

from cryorbit.errors import BadInput


def pearson(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], *, mask: Float[Tensor, "*shape"] | None = None
) -> float:
    """Correlation of two maps less their means, where the mask is above 0.5, or everywhere; 0 if one is constant there.

    The means are taken away, which a plain cosine does not: two positive maps of anything have a high cosine.

    >>> import torch
    >>> pearson(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0, 6.0, 7.0]))
    1.0
    """
    x, y = (_inside(v, mask) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    power = float(x.square().sum() * y.square().sum())
    return round(float((x * y).sum()) / math.sqrt(power), 12) if power > 0 else 0.0


def interval_coverage(
    samples: Float[Tensor, "s *shape"],
    truth: Float[Tensor, "*shape"],
    *,
    level: float = 0.9,
    mask: Float[Tensor, "*shape"] | None = None,
) -> float:
    """Share of voxels whose truth lies in the interval that samples of the posterior give, voxel by voxel.

    The interval is Student's: mean -+ t sd sqrt(1 + 1 / s) with s - 1 degrees of freedom. For a Gaussian posterior the
    truth is one more draw, and it holds `level` of the voxels whatever the number of samples; quantiles of few samples
    would not. Voxels that no sample moves count as covered only if they are equal to the truth.

    Parameters
    ----------
    mask
        What counts: above 0.5. Empty solvent is easy to cover, so give the mask's figure beside the whole box's.

    Raises
    ------
    BadInput
        With fewer than two samples, or a level that is not between 0 and 1.
    """
    if len(samples) < 2 or not 0 < level < 1:
        raise BadInput(
            f"interval_coverage: {len(samples)} samples, level {level}; wanted two samples or more, and 0 < level < 1."
        )
    s = len(samples)
    width = float(student.ppf(0.5 + level / 2, s - 1)) * math.sqrt(1 + 1 / s)
    covered = (truth - samples.mean(0)).abs() <= width * samples.std(0)
    return float(_inside(covered.double(), mask).mean())


def spread_error_correlation(
    samples: Float[Tensor, "s *shape"],
    truth: Float[Tensor, "*shape"],
    *,
    mask: Float[Tensor, "*shape"] | None = None,
) -> float:
    """Spearman's correlation, with its sign, of the samples' spread and their mean's absolute error over voxels.

    Below 1 even for a perfect posterior, whose errors are draws of the spread; 0 where either is constant.

    Raises
    ------
    BadInput
        With fewer than two samples.
    """
    if len(samples) < 2:
        raise BadInput("spread_error_correlation: one sample has no spread. Draw at least two, better eight.")
    spread, error = (_inside(v, mask).cpu() for v in (samples.std(0), (samples.mean(0) - truth).abs()))
    if len(spread) < 2 or float(spread.std()) == 0 or float(error.std()) == 0:
        return 0.0
    ranks = np.stack([rankdata(v.numpy()) for v in (spread, error)])
    return float(np.corrcoef(ranks)[0, 1])


def _inside(values: Tensor, mask: Tensor | None) -> Tensor:
    flat = values.double().flatten() if mask is None else values.double()[mask > 0.5]
    if len(flat) == 0:
        raise BadInput("A mask without any voxel above 0.5 leaves nothing to compare. Give another mask.")
    return flat
