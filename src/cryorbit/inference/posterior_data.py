"""What images with known poses say of a map, as two volumes: every sum over images is made once (`inference.image_sums`).

With transfer h_i (CTF, odd aberrations, shift), noise power s_i^2(|k|) and slices P_i at the pose of image i,

    log p(Y | V) = -1/2 <V, W V> + <B, V> - energy / 2 + const,
    W = sum_i P_i^T |h_i|^2 / s_i^2 P_i,   B = sum_i P_i^T conj(h_i) Y_i / s_i^2,   energy = sum_i |Y_i|^2 / s_i^2.

P_i reads the transform of the voxels themselves, sum over r of V(r) exp(-2 pi i k . r), at the rotated points of the half
plane: no interpolation, which is what "exact" means here (`physics.fourier_sums`). Then W depends on differences of
voxels only: it is a convolution with a point-spread function of 2 n voxels, one pair of transforms. W is not diagonal in
the box's own transform, since slices fall between its points; `weight` is its diagonal there, the best approximation by a
convolution that wraps around (Chan 1988), used as a preconditioner, or for all where `diagonal()` is asked for.

Transforms of maps are unitary in what `weight` and `draw` mean, so that white noise keeps its variance; <,> is the plain
sum over voxels, and the weights of half transforms never show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.inference.gaussian_solves import draw_precision, solve_precision

_DIMS = (-3, -2, -1)


@dataclass(frozen=True, eq=False)
class TwoVolumes:
    """The log-likelihood of a map, of a cost that does not depend on the number of images.

    Parameters
    ----------
    back_projection
        B, shape (n, n, n), axes z, y, x.
    weight
        Diagonal of W in the transform of the box, layout of `rfftn`, shape (n, n, n // 2 + 1); not negative.
    point_spread
        Transform of W's point-spread function, real and even, layout of `rfftn` of 2 n voxels; None: W is `weight`.
    energy
        Sum of |Y|^2 / s^2 over images.
    count
        Real numbers that were compared: what `chi_square` of the true map is on average.
    pixel_size_A
        Voxel edge, angstrom.
    cutoff_A
        Resolution that the data reach (`inference.collapse`), angstrom: samplers remove what is finer unless asked to
        keep it. None where it is not known, or where it is the voxels that limit it.
    """

    back_projection: Float[Tensor, "n n n"]
    weight: Float[Tensor, "n n h"]
    point_spread: Float[Tensor, "p p q"] | None
    energy: float
    count: float
    pixel_size_A: float
    cutoff_A: float | None = None

    def __post_init__(self) -> None:
        n = self.back_projection.shape[0]
        if tuple(self.weight.shape) != (n, n, n // 2 + 1) or (
            self.point_spread is not None and tuple(self.point_spread.shape) != (2 * n, 2 * n, n + 1)
        ):
            raise BadInput(f"TwoVolumes: weights do not fit a map of {n} voxels. Make them with collapse().")

    @property
    def box(self) -> int:
        """Edge of the map in voxels."""
        return self.back_projection.shape[0]

    def diagonal(self) -> TwoVolumes:
        """The same with W replaced by its diagonal: closed form, and wrong by what slices put between points."""
        return replace(self, point_spread=None)

    def scaled(self, factor: float) -> TwoVolumes:
        """The likelihood of x, with V = factor x: for a prior's own unit, or a gain of the images."""
        spread = None if self.point_spread is None else self.point_spread * factor**2
        return replace(
            self,
            back_projection=self.back_projection * factor,
            weight=self.weight * factor**2,
            point_spread=spread,
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TwoVolumes:
        """On another device or of another precision."""
        spread = None if self.point_spread is None else self.point_spread.to(device=device, dtype=dtype)
        return replace(
            self,
            back_projection=self.back_projection.to(device=device, dtype=dtype),
            weight=self.weight.to(device=device, dtype=dtype),
            point_spread=spread,
        )

    def __add__(self, other: TwoVolumes) -> TwoVolumes:
        if self.box != other.box or abs(self.pixel_size_A / other.pixel_size_A - 1) > 1e-6:
            raise BadInput(
                f"TwoVolumes: cannot add box {other.box} at {other.pixel_size_A} A to box {self.box} at "
                f"{self.pixel_size_A} A. Resample the images of one first."
            )
        mine, theirs = self.point_spread, other.point_spread
        return TwoVolumes(
            self.back_projection + other.back_projection,
            self.weight + other.weight,
            None if mine is None or theirs is None else mine + theirs,
            self.energy + other.energy,
            self.count + other.count,
            self.pixel_size_A,
        )

    def apply(self, v: Float[Tensor, "*batch n n n"]) -> Float[Tensor, "*batch n n n"]:
        """W v: one pair of transforms of 2 n voxels, or of n for the diagonal."""
        if self.point_spread is None:
            return self.filtered(v, self.weight)
        n = self.box
        wave = torch.fft.rfft(v, n=2 * n, dim=-1)
        wave = torch.fft.fft(torch.fft.fft(wave, n=2 * n, dim=-2), n=2 * n, dim=-3)
        wave = torch.fft.ifft(wave * self.point_spread, dim=-3)[..., :n, :, :]
        wave = torch.fft.ifft(wave, dim=-2)[..., :n, :]
        return torch.fft.irfft(wave, n=2 * n, dim=-1)[..., :n].contiguous()

    def filtered(
        self, v: Float[Tensor, "*batch n n n"], transfer: Float[Tensor, "n n h"]
    ) -> Float[Tensor, "*batch n n n"]:
        """The transform of v times a real function of the box's frequencies."""
        return torch.fft.irfftn(torch.fft.rfftn(v, dim=_DIMS) * transfer, s=(self.box,) * 3, dim=_DIMS)

    def gradient(self, v: Float[Tensor, "*batch n n n"]) -> Float[Tensor, "*batch n n n"]:
        """Of the log-likelihood: B - W v."""
        return self.back_projection - self.apply(v)

    def chi_square(self, v: Float[Tensor, "*batch n n n"]) -> Float[Tensor, "*batch"]:
        """Sum over images of |Y - h P v|^2 / s^2, float64: -2 log-likelihood, `count` on average at the truth."""
        twice = 2 * self.back_projection - self.apply(v)
        return self.energy - (v.double() * twice.double()).sum(_DIMS)

    def log_likelihood(self, v: Float[Tensor, "*batch n n n"]) -> Float[Tensor, "*batch"]:
        """Up to a constant of the data."""
        return -0.5 * self.chi_square(v)

    def gain(self, v: Float[Tensor, "*batch n n n"]) -> Float[Tensor, "*batch"]:
        """The factor a for which a v explains the images best, <B, v> / <v, W v>."""
        power = (v.double() * self.apply(v).double()).sum(_DIMS)
        if bool((power <= 0).any()):
            raise BadInput("TwoVolumes.gain: the map is empty where there are data. Give one with density.")
        return (self.back_projection.double() * v.double()).sum(_DIMS) / power

    def curvature(self, *, steps: int = 30) -> float:
        """Upper end of W's spectrum, to a few percent from above: the power method, and 5 % on top."""
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.back_projection.shape, generator=generator).to(self.back_projection)
        v = v + self.back_projection / self.back_projection.norm().clamp_min(1e-30) * v.norm()
        size = 0.0
        for _ in range(steps):
            v = self.apply(v / v.norm().clamp_min(1e-30))
            size = float(v.norm())
        return max(1.05 * size, 1e-30)

    def prox(
        self,
        x: Float[Tensor, "*batch n n n"],
        rho: float,
        *,
        start: Float[Tensor, "*batch n n n"] | None = None,
        tolerance: float = 1e-4,
        floor: float = 0.0,
        steps: int = 100,
    ) -> Float[Tensor, "*batch n n n"]:
        """The v of least -log p(Y | v) + |v - x|^2 / (2 rho^2): the mean of v given the images and x.

        (W + I / rho^2)^-1 (B + x / rho^2): closed form for the diagonal, conjugate gradients preconditioned by it else.

        Parameters
        ----------
        start
            A guess to begin at, such as the last answer; x if None.
        tolerance, floor
            Done when the residual is so small against that of x, or the error so small against v's own deviation.
        steps
            Done then in any case.
        """
        change = None if start is None else start - x
        return x + solve_precision(
            self, self.gradient(x), 1 / rho**2, tolerance=tolerance, steps=steps, start=change, floor=floor
        )

    def deviation(
        self, white: Float[Tensor, "*batch n n n"], rho: float, *, tolerance: float = 1e-4, steps: int = 100
    ) -> Float[Tensor, "*batch n n n"]:
        """White noise of unit variance made into the scatter of v given the images and x: variance (W + I / rho^2)^-1.

        `prox(x, rho)` plus this is an exact draw. For the diagonal by colouring; for the exact operator by the Lanczos
        process on the preconditioned one, whose inverse square root it applies to the noise.
        """
        return draw_precision(self, white, 1 / rho**2, tolerance=tolerance, steps=steps)
