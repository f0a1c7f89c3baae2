"""What images with known poses say of a map, as two volumes: every sum over images is made once.

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

from cryorbit.data import CTF, Pose
from cryorbit.errors import BadInput
from cryorbit.inference.gaussian_solves import draw_precision, solve_precision
from cryorbit.physics.formation import plane_matrix, transfer_of
from cryorbit.physics.fourier_sums import WaveSums
from cryorbit.physics.lattice import half_plane
from cryorbit.physics.noise import spread_shells
from cryorbit.physics.project import transforms_of

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


class ImageSums:
    """Gathers W and B from images given piece by piece, in float64.

    Parameters
    ----------
    box, pixel_size_A
        Of the images and of the map.
    width
        Points per axis of the gridding kernel: relative error 1e-3 for 4, 1e-5 for 6, 1e-7 for 8, 1e-9 for 10. The cost of
        an image goes with its cube.
    radius
        Highest frequency compared, cycles per box; never beyond (box - 1) / 2, the default.
    """

    def __init__(
        self,
        box: int,
        *,
        pixel_size_A: float,
        width: int = 6,
        radius: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.box, self.pixel_size_A = box, pixel_size_A
        self.radius = min((box - 1) / 2, radius or box)
        self.spread = WaveSums(box, 2 * box, oriented=False, width=width, device=device)
        self.back = WaveSums(box, box, oriented=True, width=width, device=device)
        self.energy = self.count = 0.0

    def insert(
        self,
        images: Float[Tensor, "n box box"],
        pose: Pose,
        ctf: CTF | None = None,
        *,
        noise_power: Float[Tensor, "#n shells"] | float,
        weight: Float[Tensor, "n"] | None = None,
    ) -> None:
        """Add images, light protein.

        Parameters
        ----------
        noise_power
            E |rfft2 of the noise|^2 (white noise: box^2 sigma^2): one number, or per shell (box // 2 + 1), for all
            images in one row or one row per image.
        weight
            Of each image, for instance the probability of the pose.

        Raises
        ------
        BadInput
            If shapes disagree or a noise power is not positive.
        """
        if images.shape[-2:] != (self.box, self.box) or len(images) != len(pose):
            raise BadInput(
                f"ImageSums.insert: wanted ({len(pose)}, {self.box}, {self.box}) images for {len(pose)} poses, got "
                f"{tuple(images.shape)}."
            )
        pose = Pose(pose.rotation.double(), pose.shift_A.double())
        matrix = plane_matrix(pose.rotation, ctf)
        # What a magnification carries beyond Nyquist would come back on the other side.
        stretch = max(1.0, float(torch.linalg.matrix_norm(matrix[:, :2], ord=2).max()) - 1e-6)
        points = half_plane(
            self.box, step=1, radius=self.radius / stretch, device=images.device, dtype=torch.float64
        )
        share = torch.where(points.kx == 0, 1.0, 2.0).double() / self._noise(noise_power, points.position)
        if weight is not None:
            share = share * weight.double()[:, None]
        value = transforms_of(images.double()).flatten(1)[:, points.position]
        self.energy += float((share * value.abs().square()).sum())
        total = len(images) if weight is None else float(weight.double().sum())
        self.count += total * float(torch.where(points.kx == 0, 1.0, 2.0).sum())
        share = share.expand(len(images), -1)
        transfer = transfer_of(pose.shift_A, ctf, self.box, pixel_size_A=self.pixel_size_A)
        if transfer is not None:
            transfer = transfer.flatten(1)[:, points.position]
            value, seen = value * transfer.conj() * share, transfer.abs().square() * share
        else:
            value, seen = value * share, share
        where = points.kx[:, None] * matrix[:, None, 0] + points.ky[:, None] * matrix[:, None, 1]
        where = where.flatten(0, 1)
        self.spread.add(where, seen.reshape(-1))
        self.back.add(where, value.reshape(-1))

    def _noise(self, noise_power: Tensor | float, position: Tensor) -> Tensor:
        if not isinstance(noise_power, Tensor):
            noise_power = torch.full((1, self.box // 2 + 1), float(noise_power), device=position.device)
        if noise_power.shape[-1] != self.box // 2 + 1 or not bool((noise_power > 0).all()):
            raise BadInput(
                f"ImageSums.insert: wanted {self.box // 2 + 1} positive noise powers per image, got shape "
                f"{tuple(noise_power.shape)}. Estimate them with group_noise()."
            )
        return spread_shells(noise_power.double(), self.box).flatten(-2)[..., position]

    def finish(self, *, dtype: torch.dtype = torch.float32) -> TwoVolumes:
        """The two volumes of the images so far; more may be added afterwards."""
        n = self.box
        spread = torch.fft.ifftshift(self.spread.values())
        # A difference of n voxels does not occur, and would not be even.
        spread[n], spread[:, n], spread[:, :, n] = 0, 0, 0
        near = torch.cat((torch.arange(n), torch.arange(-n, 0))).abs().to(spread) / n
        tent = 1 - near
        folded = spread * tent[:, None, None] * tent[:, None] * tent
        folded = folded.view(2, n, 2, n, 2, n).sum((0, 2, 4))
        return TwoVolumes(
            self.back.values().to(dtype),
            torch.fft.rfftn(folded).real.clamp_min(0).to(dtype),
            torch.fft.rfftn(spread).real.to(dtype),
            self.energy,
            self.count,
            self.pixel_size_A,
        )
