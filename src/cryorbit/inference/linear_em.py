"""Expectation and maximisation of the linear model of volumes, one resolution at a time.

Image i is x_i = A_i (V_0 + sum_k z_ik V_k) + noise with z ~ N(0, I), where A_i takes slices, multiplies by the CTF and
whitens. With s = (A_i V_0, ..., A_i V_K) and G its Gram matrix, the posterior of z is normal with precision
I + G_11 (components only) and the log marginal likelihood is closed (Tipping & Bishop 1999, with A_i).

Maximisation: trilinear weights are positive and sum to 1, so by Jensen's inequality the curvature of the data term is at
most that of samples that each stand at one lattice point, D_j M, where D_j sums 2 CTF^2 / noise power and M is the mean of
E[y y^T], y = (1, z). With orientations independent of z, M is the same at all points; coordinates in which it is the
identity make every map a problem of its own, which conjugate gradients solve for voxels inside the mask. The coordinates
change the latents to mean 0 and variance 1, which is a maximisation over the prior of z as well (parameter-expanded E-M,
Liu, Rubin & Wu 1998). The caller checks that the objective did not fall, and halves the step if it did.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.fourier.shells import shell_mean, spread_shells
from cryorbit.inference.engine import Workers
from cryorbit.inference.linear_images import LinearImages
from cryorbit.physics.lattice import lattice_radius
from cryorbit.physics.map_family import MapLattice
from cryorbit.physics.project import prepare

_SOLVER_STEPS = 4
_CHUNK = 1 << 14
"""Samples of slices handled at a time."""
_LEAST_SHARE = 1e-3
"""Ridge without a prior, and density of points that no image saw, over the mean of their shell."""


@dataclass(frozen=True, eq=False)
class Expectation:
    """What one pass over the images gives at some maps."""

    gain: float
    """Log marginal likelihood over that of images of nothing but noise."""
    mean: Float[Tensor, "n k"]
    covariance: Float[Tensor, "n k k"]
    gradient: Float[Tensor, "l c2"] | None
    """Of the expected log-likelihood, on the lattice."""

    def coordinates(self) -> Float[Tensor, "c c"]:
        """B with y = B y' so that y' = (1, z') has z' of mean 0 and variance 1."""
        centre = self.mean.double().mean(0)
        away = self.mean.double() - centre
        variance = away.T @ away / len(away) + self.covariance.double().mean(0)
        value, vector = torch.linalg.eigh(variance)
        b = torch.eye(len(centre) + 1, dtype=torch.float64)
        b[1:, 0] = centre
        b[1:, 1:] = vector * value.clamp_min(1e-6).sqrt() @ vector.T
        return b


def expect(
    images: LinearImages, maps: Float[Tensor, "c n n n"], team: Workers, *, with_gradient: bool = True
) -> Expectation:
    """Posterior of every image's latents given the maps (mean map first), and the likelihood's gradient."""
    rows = images.lattice.rows(maps)
    gain, means, covariances = 0.0, [], []
    gradient = torch.zeros_like(rows) if with_gradient else None
    for group in torch.arange(len(images)).split(team.count):
        parts = team.map(lambda b: _batch(images, rows, b, with_gradient), group.tolist())
        for value, mean, covariance, slope in parts:
            gain += value
            means.append(mean)
            covariances.append(covariance)
            if gradient is not None and slope is not None:
                gradient += slope
    return Expectation(gain, torch.cat(means), torch.cat(covariances), gradient)


def _batch(
    images: LinearImages, rows: Tensor, batch: int, with_gradient: bool
) -> tuple[float, Tensor, Tensor, Tensor | None]:
    data, ctf = images.disks(batch)
    stencil, (n, p) = images.stencil(batch), ctf.shape
    values = rows.new_empty((n, 2 * p, rows.shape[1] // 2)) if with_gradient else None
    found = []
    # A few at a time, so that what lies between two steps stays in the processor's cache.
    for part in torch.arange(n).split(max(1, _CHUNK // p)):
        few = slice(int(part[0]), int(part[-1]) + 1)
        slices = stencil.part(slice(few.start * p, few.stop * p)).read(rows).view(len(part), p, -1)
        slices *= ctf[few, :, None]
        x, flat = data[few].reshape(len(part), 2 * p, 1), slices.view(len(part), 2 * p, -1)
        gain, mean, covariance = _posterior(x, flat)
        found.append((gain, mean, covariance))
        if values is not None:
            _expected_gradient(x, flat, mean, covariance, out=values[few])
            values[few].view(len(part), p, -1).mul_(ctf[few, :, None])
    gain, mean, covariance = (torch.cat(column) for column in zip(*found, strict=True))
    slope = None if values is None else stencil.add(values.view(n * p, 2, -1))
    return float(gain.sum()), mean.float(), covariance.float(), slope


def _posterior(x: Float[Tensor, "b p 1"], flat: Float[Tensor, "b p c"]) -> tuple[Tensor, Tensor, Tensor]:
    """Log marginal likelihood over that of noise, posterior mean and covariance of each image's latents."""
    gram = torch.bmm(flat.transpose(1, 2), flat).double()
    match = torch.bmm(flat.transpose(1, 2), x)[..., 0].double()
    root = torch.linalg.cholesky(gram[:, 1:, 1:] + torch.eye(gram.shape[1] - 1, dtype=gram.dtype))
    residual = match[:, 1:] - gram[:, 1:, 0]
    mean = torch.cholesky_solve(residual[..., None], root)[..., 0]
    gain = match[:, 0] - 0.5 * gram[:, 0, 0] + 0.5 * (residual * mean).sum(1)
    return gain - root.diagonal(dim1=1, dim2=2).log().sum(1), mean, torch.cholesky_inverse(root)


def _expected_gradient(x: Tensor, flat: Tensor, mean: Tensor, covariance: Tensor, *, out: Tensor) -> None:
    """E[(x - flat y) y^T] with y = (1, z): the likelihood's gradient with respect to each slice."""
    y = torch.cat((mean.new_ones(len(mean), 1), mean), 1)
    square = y[:, :, None] * y[:, None, :]
    square[:, 1:, 1:] += covariance
    torch.baddbmm(x * y[:, None].float(), flat, square.float(), alpha=-1, out=out)


@dataclass(frozen=True, eq=False)
class Problem:
    """What maximisation at one resolution needs beside the expectation.

    Parameters
    ----------
    density
        `LinearImages.density`.
    mask
        Where the maps may differ from zero.
    last_shell
        Shells (Fourier pixels of the maps) beyond see no data.
    """

    lattice: MapLattice
    density: Float[Tensor, "p p h"]
    mask: Float[Tensor, "n n n"]
    last_shell: int
    shell: Int[Tensor, "p p h"] = field(init=False)
    per_shell: Float[Tensor, "shells"] = field(init=False)
    filled: Float[Tensor, "p p h"] = field(init=False)

    def __post_init__(self) -> None:
        n, last = self.lattice.box, self.last_shell
        shell = (lattice_radius(n, self.density) / 2).round().long().clamp_max(n // 2 + 1)
        count = torch.bincount(shell.flatten(), minlength=n // 2 + 2)
        total = torch.bincount(shell.flatten(), weights=self.density.flatten().double(), minlength=n // 2 + 2)
        mean = (total / count.clamp_min(1)).float()
        mean[last + 1 :] = mean[last]
        mean[0] = mean[1]  # no image holds its own mean
        object.__setattr__(self, "shell", shell)
        object.__setattr__(self, "per_shell", mean)
        object.__setattr__(self, "filled", self.density + _LEAST_SHARE * mean[shell])

    def ridge(self, power: Float[Tensor, "shells"] | None) -> Float[Tensor, "shells"]:
        """Weight of the prior at the lattice points of each shell; no power is next to no prior."""
        out = _LEAST_SHARE * self.per_shell
        if power is not None:
            # Eight lattice points stand for one coefficient of power `power`, and the stored half counts for both.
            out = out + 0.25 / power.clamp_min(1e-30)
        out[self.last_shell + 1 :] += self.per_shell[self.last_shell]
        return out

    def penalty(self, maps: Float[Tensor, "c n n n"], power: Float[Tensor, "c shells"] | None) -> float:
        """Minus the logarithm of the prior of the maps, up to a constant."""
        total = 0.0
        for i, values in enumerate(maps):
            size = prepare(Volume(values, 1.0)).half.abs().square() * self._weights(
                self.ridge(_row(power, i))
            )
            total += 0.5 * float(size.double().sum())
        return total

    def shrinkage(self, power: Float[Tensor, "shells"]) -> Float[Tensor, "shells"]:
        """Share of each shell's estimate that comes from the data."""
        return self.per_shell / (self.per_shell + self.ridge(power))

    def power_of(
        self, maps: Float[Tensor, "c n n n"], power: Float[Tensor, "c shells"]
    ) -> Float[Tensor, "c shells"]:
        """The prior's power per shell, re-estimated: MacKay's fixed point of the evidence (1992)."""
        n = self.lattice.box
        found = shell_mean(torch.fft.rfftn(maps, dim=(1, 2, 3)).abs().square(), n=n, ndim=3)
        known = torch.stack([self.shrinkage(row) for row in power])[:, : found.shape[1]]
        found = found / (known * self.mask.square().mean()).clamp_min(1e-6)
        smooth = torch.nn.functional.avg_pool1d(
            torch.nn.functional.pad(found[:, None], (1, 1), mode="replicate"), 3, stride=1
        )[:, 0]
        return (
            torch.nn.functional.pad(smooth, (0, 1), mode="replicate")
            if n // 2 + 2 > smooth.shape[1]
            else smooth
        )

    def step(
        self, right: Complex[Tensor, "p p h"], power: Float[Tensor, "shells"] | None
    ) -> Float[Tensor, "n n n"]:
        """Voxels d in the mask that minimise d^T H d / 2 - d^T right, by a few conjugate gradients from 0."""
        ridge = self.ridge(power)
        weight = self.filled + self._weights(ridge)
        n = self.lattice.box
        eigen = 0.5 * (2 * n) ** 3 * (self.per_shell + ridge)
        damp = spread_shells(1 / eigen, n=n, ndim=3, outside=float(1 / eigen[-1]))
        residual = self.lattice.map_of(right) * self.mask
        out = torch.zeros_like(residual)
        direction, before = out, 1.0
        for _ in range(_SOLVER_STEPS):
            softened = torch.fft.irfftn(torch.fft.rfftn(residual) * damp, s=(n, n, n))
            now = float((residual * softened).sum(dtype=torch.float64))
            if now <= 0:
                break
            direction = softened + (now / before) * direction
            before = now
            curved = self._curvature(direction, weight)
            along = now / float((direction * curved).sum(dtype=torch.float64))
            out = out + along * direction
            residual = residual - along * curved
        return out * self.mask

    def _curvature(self, values: Tensor, weight: Tensor) -> Tensor:
        half = prepare(Volume(values * self.mask, 1.0)).half * weight
        return self.lattice.map_of(half) * self.mask

    def _weights(self, per_shell: Tensor) -> Tensor:
        out = per_shell[self.shell]
        out[:, :, 0] *= 0.5  # both mates are stored there
        return out


def maximise(
    problem: Problem,
    maps: Float[Tensor, "c n n n"],
    found: Expectation,
    power: Float[Tensor, "c shells"] | None,
    team: Workers,
) -> Float[Tensor, "c n n n"]:
    """Better maps, mean first; see the module."""
    assert found.gradient is not None
    c = maps.shape[0]
    b = found.coordinates()
    moved = torch.einsum("izyx,ij->jzyx", maps, b.float())
    gradient = found.gradient.view(-1, 2, c) @ torch.linalg.inv(b).T.float()
    grid = gradient.view(*problem.lattice.shape, 2, c)

    def one(i: int) -> Tensor:
        own = _row(power, i)
        right = torch.complex(grid[..., 0, i], grid[..., 1, i])
        right = right - prepare(Volume(moved[i], 1.0)).half * problem._weights(problem.ridge(own))
        return moved[i] + problem.step(right, own)

    return torch.stack(team.map(one, range(c)))


def principal(maps: Float[Tensor, "c n n n"]) -> tuple[Float[Tensor, "c n n n"], Float[Tensor, "k k"]]:
    """The same family with orthogonal components, the largest first, and W with z' = W z."""
    flat = maps[1:].flatten(1).double()
    vector = torch.linalg.eigh(flat @ flat.T).eigenvectors
    turn = vector.flip(1).T
    turned = (turn @ flat).to(maps).view_as(maps[1:])
    return torch.cat((maps[:1], turned)), turn


def _row(power: Tensor | None, i: int) -> Tensor | None:
    return None if power is None else power[i]
