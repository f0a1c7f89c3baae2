"""Samplers where the posterior is known: a Gaussian prior with a spectrum, a likelihood diagonal in Fourier space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cryorbit.data import Pose
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import radius_grid
from cryorbit.fourier.shells import shell_mean
from cryorbit.inference.engine import Progress
from cryorbit.inference.gaussian_solves import draw_precision, solve_precision
from cryorbit.inference.image_sums import ImageSums
from cryorbit.inference.posterior import PosteriorSamples, PosteriorSettings, sample_posterior
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.posterior_methods import (
    DAPS,
    DPS,
    METHODS,
    CountedDenoiser,
    DiffPIR,
    FixedStepDPS,
    Method,
    PiGDM,
    Problem,
    SplitGibbs,
)
from cryorbit.inference.prior_sampling import noise_levels
from gaussian_denoiser import DIMS, GaussianDenoiser, filtered
from physics_models import uniform_rotations

SAMPLES = 100


@dataclass(frozen=True, eq=False)
class Oracle:
    """A problem and its posterior: mean, and variance of each coefficient."""

    denoiser: GaussianDenoiser
    data: TwoVolumes
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, n: int) -> Oracle:
        g = torch.Generator().manual_seed(n)
        radius = radius_grid(n, ndim=3, dtype=torch.float64)
        power = 9 * torch.exp(-((radius / (0.2 * n)) ** 2)) + 0.01
        weight = 4 * torch.exp(-((radius / (0.25 * n)) ** 2))

        def white() -> Tensor:
            return torch.randn(n, n, n, generator=g, dtype=torch.float64)

        images = filtered(filtered(white(), power.sqrt()), weight.sqrt()) + white()
        b = filtered(images, weight.sqrt())
        data = TwoVolumes(b, weight, None, float(images.square().sum()), float(n**3), 1.0)
        variance = 1 / (weight + 1 / power)
        return cls(GaussianDenoiser(power), data, filtered(b, variance), variance)

    def run(self, method: Method, *, samples: int = SAMPLES, **settings: float) -> PosteriorSamples:
        plan = PosteriorSettings(samples=samples, at_a_time=samples, **settings)  # pyright: ignore
        return finished(sample_posterior(self.denoiser, self.data, method, plan))

    def error_of_mean(self, found: PosteriorSamples) -> float:
        return float((found.mean() - self.mean).norm() / self.mean.norm())

    def squared_z(self, found: PosteriorSamples) -> float:
        """Mean square of the coefficients' error of the mean, in its standard errors; 1 without bias."""
        error = torch.fft.fftn(found.mean() - self.mean, norm="ortho").abs().square()
        full = torch.fft.fftn(torch.fft.irfftn(self.variance, s=error.shape)).real
        return float((error / full).mean()) * len(found.samples)

    def variance_ratio(self, found: PosteriorSamples) -> float:
        """Variance of samples over that of the posterior, summed over the map."""
        n = self.data.box
        full = torch.fft.irfftn(self.variance, s=(n,) * 3)[0, 0, 0]
        return float(found.samples.var(0).mean() / full)


def finished(run: Iterator[Progress]) -> PosteriorSamples:
    *_, last = run
    return last.result


@lru_cache
def oracle(n: int) -> Oracle:
    return Oracle.of(n)


@pytest.mark.parametrize("n", [7, 8])
@pytest.mark.parametrize("method", [SplitGibbs(), DiffPIR(correction="draw")])
def test_samples_have_the_posterior_s_mean_and_variance(n, method):
    """The mean is within 3 standard errors, root mean square over coefficients; the variance within a tenth."""
    found = oracle(n).run(method, steps=100, lowest=0.05)
    assert oracle(n).squared_z(found) < 3**2
    assert 0.9 < oracle(n).variance_ratio(found) < 1.1
    print(
        f"{method}: z {oracle(n).squared_z(found) ** 0.5:.2f}, variance {oracle(n).variance_ratio(found):.3f}"
    )


@pytest.mark.parametrize("n", [7, 8])
def test_variance_is_right_at_every_resolution(n):
    """Shell by shell: 100 samples of 20 or more coefficients have a scatter below a twentieth; 0.15 for annealing."""
    found = oracle(n).run(DiffPIR(correction="draw"), steps=100, lowest=0.05)
    power = torch.fft.rfftn(found.samples - found.mean(), dim=DIMS, norm="ortho").abs().square().sum(0)
    ratio = shell_mean(power / (SAMPLES - 1) / oracle(n).variance, n=n, ndim=3)
    assert float((ratio[1:] - 1).abs().max()) < 0.15


class Silent(Problem):
    """A problem whose noise is zero: where everything is linear, its one chain is the mean of all chains."""

    def noise(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)


@pytest.mark.parametrize("n", [7, 8])
def test_diffpir_tends_to_the_posterior_mean(n):
    """The mean of its chains, chance taken out, is within 2 % of the posterior's, and nearer with more steps."""
    problem = Silent(CountedDenoiser(oracle(n).denoiser, 1), oracle(n).data, torch.Generator())
    unit, errors = oracle(n).denoiser.sigma_data, []
    for steps in (25, 100, 400):
        clean = x = torch.zeros(1, 1, n, n, n, dtype=torch.float64)
        for sigma, lower in pairwise(noise_levels(steps, 0.01 * unit, 50 * unit).tolist()):
            x, clean = DiffPIR().step(problem, x, sigma, lower, clean)
        errors.append(float((clean[0, 0] - oracle(n).mean).norm() / oracle(n).mean.norm()))
    print(f"DiffPIR with 25, 100, 400 steps: {errors} of the posterior mean")
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.02


@pytest.mark.parametrize("n", [6, 7])
def test_samples_are_right_for_the_exact_operator_too(n):
    """Ten images with slices between the box's frequencies: mean and variance are those of (W + prior^-1)^-1."""
    g = torch.Generator().manual_seed(n)
    sums = ImageSums(n, pixel_size_A=2.0)
    images = torch.randn(10, n, n, generator=g, dtype=torch.float64)
    sums.insert(images, Pose(uniform_rotations(10), torch.randn(10, 2, generator=g)), noise_power=n**2 * 3.0)
    data, denoiser = sums.finish(dtype=torch.float64), oracle(n).denoiser
    mean = solve_precision(data, data.back_projection, 1 / denoiser.power, tolerance=1e-6, steps=300)
    white = torch.randn(60, n, n, n, generator=g, dtype=torch.float64)
    exact = draw_precision(data, white, 1 / denoiser.power, tolerance=1e-4, steps=100)
    plan = PosteriorSettings(samples=60, at_a_time=60, steps=50, highest=5.0, lowest=0.05)
    found = finished(sample_posterior(denoiser, data, DiffPIR(correction="draw"), plan))
    # A tenth as for the diagonal, and the scatter of both variances: sqrt(2 / 60 / about 30 free modes) each.
    assert abs(float(found.samples.var(0).sum() / exact.var(0).sum()) - 1) < 0.15
    squared_error = (found.mean() - mean).square().sum()
    assert float(squared_error) < 2 * float(exact.var(0).sum()) / 60


def test_guidance_by_gradients_is_biased_and_says_so():
    """DPS misses the posterior mean by more than DiffPIR does at a fifth of the passes; PiGDM comes near it."""
    diffpir = oracle(8).error_of_mean(oracle(8).run(DiffPIR(), steps=100, samples=40))
    bias = {}
    for name, method in (
        ("PiGDM", PiGDM()),
        ("DPS", DPS()),
        ("fixed step", FixedStepDPS()),
        ("DAPS", DAPS()),
    ):
        found = oracle(8).run(method, steps=100, samples=40)
        bias[name] = oracle(8).error_of_mean(found)
        print(f"{name}: {bias[name]:.3f} of the mean, variance {oracle(8).variance_ratio(found):.3f}")
    assert bias["PiGDM"] < 0.2  # 0.1 of it the scatter of 40 chains
    assert bias["DPS"] > 2 * diffpir
    assert bias["fixed step"] > 2 * diffpir


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_one_protocol(name):
    """Progress at each step, passes counted, the same seed the same maps, and a resumed run the same run."""
    n, plan = 7, PosteriorSettings(samples=3, steps=5, at_a_time=2, seed=4)
    problem = oracle(n)
    records = list(sample_posterior(problem.denoiser, problem.data, METHODS[name](), plan))
    assert [r.step for r in records] == [1, 2, 3, 4, 5]
    whole = records[-1].result
    assert whole.samples.shape == (3, n, n, n)
    assert whole.spread().shape == (n, n, n)
    expected = {"split-gibbs": 15, "pigdm": 10, "dps": 10, "dps-fixed-step": 10}.get(name, 5)
    assert whole.network_passes == expected == records[-1].metrics["network_passes"]
    run = sample_posterior(problem.denoiser, problem.data, METHODS[name](), plan)
    state = [next(run) for _ in range(3)][-1].state
    resumed = finished(sample_posterior(problem.denoiser, problem.data, METHODS[name](), plan, state=state))
    assert torch.equal(resumed.samples, whole.samples)
    other = finished(sample_posterior(problem.denoiser, problem.data, METHODS[name](), replace(plan, seed=5)))
    assert not torch.equal(other.samples, whole.samples)


def test_detail_beyond_the_data_is_cut_unless_asked():
    """With a cut-off, samples hold nothing finer; with `beyond_data` they do."""
    n = 8
    data = replace(oracle(n).data, cutoff_A=4.0)  # two of four shells
    outer = radius_grid(n, ndim=3) > 3
    kept = []
    for beyond in (False, True):
        plan = PosteriorSettings(samples=2, steps=5, beyond_data=beyond)
        found = finished(sample_posterior(oracle(n).denoiser, data, DiffPIR(), plan))
        kept.append(float(torch.fft.rfftn(found.samples, dim=DIMS)[:, outer].abs().max()))
        assert found.cutoff_A == (None if beyond else 4.0)
    assert kept[0] < 1e-9 * kept[1]


def test_the_likelihood_can_change_between_steps():
    """`refresh` sees the clean maps of each step; what it returns counts from then on."""
    seen = []

    def refresh(clean: Tensor, step: int) -> TwoVolumes | None:
        seen.append((tuple(clean.shape), step))
        return oracle(7).data.scaled(2.0) if step == 0 else None

    plan = PosteriorSettings(samples=2, steps=60)
    found = finished(sample_posterior(oracle(7).denoiser, oracle(7).data, DiffPIR(), plan, refresh=refresh))
    assert seen[:2] == [((2, 1, 7, 7, 7), 0), ((2, 1, 7, 7, 7), 1)]
    data = oracle(7).data
    wanted = finished(sample_posterior(oracle(7).denoiser, data.scaled(2.0), DiffPIR(), plan))
    unchanged = finished(sample_posterior(oracle(7).denoiser, data, DiffPIR(), plan))
    near = (found.mean() - wanted.mean()).norm()
    assert float(near) < 0.1 * float((found.mean() - unchanged.mean()).norm())


def test_what_cannot_be_run_is_refused():
    with pytest.raises(BadInput, match="lowest <= highest"):
        PosteriorSettings(lowest=2.0, highest=1.0)
    with pytest.raises(BadInput, match="at least one step"):
        DAPS(flow_steps=0)
    plan = PosteriorSettings(samples=1, steps=2)
    first = next(sample_posterior(oracle(7).denoiser, oracle(7).data, DiffPIR(), plan))
    with pytest.raises(BadInput, match="not of a run"):
        next(
            sample_posterior(
                oracle(7).denoiser, oracle(7).data, DiffPIR(), replace(plan, samples=2), state=first.state
            )
        )
