"""How well maps of each half of the data explain the other half, and how sure the difference of two such misfits is.

With B = W truth + n, n of covariance W, the misfit of a map v is chi^2(v) = energy - 2 <v, B> + <v, W v>. Two maps, x apart,
share the data's noise: the random part of their difference is -2 <x, n>, of variance 4 <x, W x>, far below that of either
misfit, 2 `count`. Halves 1 and 2 add to -2 <x_1, n_2> - 2 <x_2, n_1>, where x_1 has the noise n_1 in it and x_2 has n_2. A
posterior mean answers its data by its covariance C, dv / dB = C, which is symmetric: so both terms have the covariance
4 tr(C W C W), C being that of one map less that of the other. <x_1 - x_2, W (x_1 - x_2)> is twice the trace on average, W
the mean of both halves', since what x_1 and x_2 do not share is noise. In all

    Var = 4 (<x_1, W_2 x_1> + <x_2, W_1 x_2> + <x_1 - x_2, W (x_1 - x_2)>).

Without the last term the error is a quarter too small where a prior removes much noise, as simulated with Gaussians. What
else x_1 and x_2 do not share, such as chance in a sampler's chains, makes it larger than it need be, on average by sqrt(2)
at most.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.prior_images import Halves

MapPair = tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]]
"""A map of the first half of the data and one of the second, in the likelihoods' unit."""


def held_out_misfit(halves: Halves, maps: MapPair) -> float:
    """chi^2 of each half given the map of the other, per number compared."""
    misfit = halves.second.chi_square(maps[0]) + halves.first.chi_square(maps[1])
    return float(misfit) / _count(halves)


def difference_error(halves: Halves, maps: MapPair, others: MapPair) -> float:
    """Standard error of `held_out_misfit` of maps less that of others, about what fresh data would say of them."""
    x1, x2 = (a - b for a, b in zip(maps, others, strict=True))
    apart = x1 - x2
    shared = (_power(halves.first, apart) + _power(halves.second, apart)) / 2
    variance = 4 * (_power(halves.second, x1) + _power(halves.first, x2) + shared)
    return math.sqrt(variance) / _count(halves)


def _power(data: TwoVolumes, x: Float[Tensor, "n n n"]) -> float:
    """<x, W x>; rounding makes it no less than 0."""
    return max(float((x.double() * data.apply(x).double()).sum()), 0.0)


def _count(halves: Halves) -> float:
    return halves.first.count + halves.second.count
