"""The error stated for a difference of two maps' misfits to held-out data is the one it has over draws of the noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cryorbit.inference.held_out import MapPair, difference_error, held_out_misfit
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.prior_images import Halves

DRAWS = 400
SCATTER = 3 / (2 * DRAWS) ** 0.5
"""Relative, three standard errors of a standard deviation over the draws: 0.11."""
COUNT = 1000.0


class Noisy:
    """Two halves of data of one truth: W a convolution, or diagonal in the box's own transform."""

    def __init__(self, n: int, *, diagonal: bool) -> None:
        self.n, self.g = n, torch.Generator().manual_seed(n)
        k, h = torch.fft.fftfreq(2 * n, dtype=torch.float64), torch.fft.rfftfreq(2 * n, dtype=torch.float64)
        r2 = 4 * (k[:, None, None].square() + k[:, None].square() + h.square())
        self.spread = 3 * torch.exp(-3 * r2) / (0.05 + r2)
        self.weight = self.spread[::2, ::2, : 2 * (n // 2) + 1 : 2].contiguous()
        self.diagonal = diagonal
        self.truth = self.white(n)

    def white(self, n: int) -> Tensor:
        return torch.randn(n, n, n, generator=self.g, dtype=torch.float64)

    def half(self) -> TwoVolumes:
        """B = W truth + noise of covariance W; for the convolution white noise of twice the box, coloured and cropped."""
        n, spread = self.n, None if self.diagonal else self.spread
        data = TwoVolumes(torch.zeros_like(self.truth), self.weight, spread, 0.0, COUNT / 2, 3.0)
        if spread is None:
            noise = data.filtered(self.white(n), self.weight.sqrt())
        else:
            wave = torch.fft.rfftn(self.white(2 * n)) * spread.sqrt()
            noise = torch.fft.irfftn(wave, s=(2 * n,) * 3)[:n, :n, :n]
        return TwoVolumes(data.apply(self.truth) + noise, self.weight, spread, 0.0, COUNT / 2, 3.0)

    def halves(self) -> Halves:
        return Halves(self.half(), self.half())

    def fresh(self, halves: Halves, maps: MapPair) -> float:
        """The misfit that data not seen would have on average, but for a constant."""
        a, b = maps[0] - self.truth, maps[1] - self.truth
        return float((a * halves.second.apply(a)).sum() + (b * halves.first.apply(b)).sum()) / COUNT


def believed(data: TwoVolumes, guess: Tensor, trust: float) -> Tensor:
    """What a Gaussian prior about a guess makes of data: its answer to B is symmetric."""
    return data.filtered(data.back_projection + trust * guess, 1 / (data.weight + trust))


@pytest.mark.parametrize("n", [7, 8])
@pytest.mark.parametrize("diagonal", [True, False])
def test_of_maps_that_do_not_depend_on_the_noise(n, diagonal):
    """The noise of the held-out data is all there is: it is shared, and cancels but for what the maps are apart."""
    made = Noisy(n, diagonal=diagonal)
    maps, others = ((v, v) for v in (made.truth + 0.3 * made.white(n), made.white(n)))
    found = []
    for _ in range(DRAWS):
        halves = made.halves()
        found.append(held_out_misfit(halves, maps) - held_out_misfit(halves, others))
        stated = difference_error(halves, maps, others)
    assert float(torch.tensor(found).std()) == pytest.approx(stated, rel=SCATTER)


@pytest.mark.parametrize("n", [7, 8])
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize(("trust", "wrong"), [(5.0, 0.0), (1.0, 0.7)])
def test_of_maps_made_of_the_halves(n, diagonal, trust, wrong):
    """What a strong prior that is right, and one that is wrong, gain over a weak one, about what fresh data would say."""
    made = Noisy(n, diagonal=diagonal)
    guess, nothing = made.truth + wrong * made.white(n), torch.zeros_like(made.truth)
    squares = []
    for _ in range(DRAWS):
        halves = made.halves()
        maps = (believed(halves.first, guess, trust), believed(halves.second, guess, trust))
        others = (believed(halves.first, nothing, 0.3), believed(halves.second, nothing, 0.3))
        found = held_out_misfit(halves, maps) - held_out_misfit(halves, others)
        fresh = made.fresh(halves, maps) - made.fresh(halves, others)
        squares.append(((found - fresh) / difference_error(halves, maps, others)) ** 2)
    assert float(torch.tensor(squares).mean().sqrt()) == pytest.approx(1, abs=SCATTER)


def test_a_map_against_itself_differs_by_nothing():
    made = Noisy(7, diagonal=True)
    assert difference_error(made.halves(), (made.truth, made.truth), (made.truth, made.truth)) == 0
