"""Deformed reconstruction: images of all conformations added into one map, each along the way its molecule bent.

Back-projection lays the value of an image at pixel p on every voxel that projects to p. Where the molecule of image i has
moved a voxel x of the reference to x + u_i(x), the value at the pixel of x + u_i(x) is laid on x (as DynaMight does, Schwab
et al. 2024). What that changes inside the ball of voxels is added to the usual sums in Fourier space, which are then divided
by the usual weights: without motion it is the usual reconstruction to the last bit; with it the weights are exact where u is
a shift. Detail that is blurred in the consensus because it moves comes back, if the motion is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from scipy.sparse import csr_array
from scipy.spatial import KDTree
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation, fourier_shell_correlation
from cryorbit.data import Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.engine import Progress
from cryorbit.inference.flex_result import FlexResult
from cryorbit.inference.observations import Observations
from cryorbit.physics.backproject import Backprojector, prior_power_from_fsc
from cryorbit.physics.formation import plane_matrix, transfer_of
from cryorbit.physics.interpolation import complete_plane
from cryorbit.physics.noise import spread_shells

_NEIGHBOURS = 6
"""Gaussians that a voxel's displacement is read from."""
_FINE = 3
"""Images are read between pixels from a grid this many times as fine, linearly: sinc^2, which takes 9 % off at
Nyquist and 2 % at half of it, of what the motion changes only."""
_BATCH = 32
_CALIBRATION = 64
"""Images from which the constant between the two ways of adding is measured."""


@dataclass(frozen=True, eq=False)
class DeformedReconstruction:
    """A map with the motion taken out.

    Parameters
    ----------
    map
        Of all images, in the reference conformation, filtered by what the halves agree on.
    half_maps, curve
        Of even and odd images, and their correlation. The motion was learned from both, so that they are independent in
        their noise, not in the motion.
    """

    map: Volume
    half_maps: tuple[Volume, Volume]
    curve: ShellCorrelation


def deformed_reconstruction(
    result: FlexResult, observed: Observations, reference: Float[Tensor, "d"]
) -> Iterator[Progress]:
    """Yield progress; the last record carries a `DeformedReconstruction` in the conformation at `reference`.

    Parameters
    ----------
    reference
        Latent vector of the conformation that all images are brought to.

    Raises
    ------
    BadInput
        If the stack is not the one that the result was made from.
    """
    n = len(observed.stack)
    if n != len(result.z) or observed.box != result.box:
        raise BadInput(
            f"{observed.stack.source}: {n} images of {observed.box} px, but the motion is that of {len(result.z)} of "
            f"{result.box} px. Give the particles of the flex run."
        )
    adder = _Adder(result, observed, reference)
    sums = []
    for h in (0, 1):
        rows = torch.arange(h, n, 2)
        change = torch.zeros(len(adder.voxel))
        for k, part in enumerate(rows.split(_BATCH)):
            change += adder.change(part)
            if k % 20 == 0:
                done = h * (n // 2) + k * _BATCH
                yield Progress("adding images along their motion", done, n, 0.95 * done / n, {})
        sums.append(adder.finished(change, rows))
    halves = (sums[0].solve(), sums[1].solve())
    curve = fourier_shell_correlation(*halves)
    both = (2 * curve.correlation / (1 + curve.correlation).clamp_min(1e-3)).to(torch.float32)
    whole = sums[0] + sums[1]
    found = whole.solve(prior_power=prior_power_from_fsc(both, whole.information()))
    yield Progress("done", n, n, 1.0, {}, {}, DeformedReconstruction(found, halves, curve))


class _Adder:
    """What is the same for all images: voxels, the Gaussians they follow, noise, the constant of the sums."""

    def __init__(self, result: FlexResult, observed: Observations, reference: Tensor) -> None:
        self.result, self.observed = result, observed
        box, pixel = observed.box, observed.pixel_size_A
        axis = (torch.arange(box) - box // 2).float()
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        self.inside = (x.square() + y.square() + z.square()).sqrt() < box / 2 - 1
        self.voxel = torch.stack((x, y, z), -1)[self.inside] * pixel
        with torch.no_grad():
            self.rest = result.model(reference[None].float()).position_A[0]
        self.follow = _followers(self.voxel, self.rest)
        self.weight = 1 / spread_shells(observed.noise_power[: box // 2 + 1], box)
        still = torch.arange(min(_CALIBRATION, len(observed.stack)))
        straight = self._windowed(self._laid(still, *self._places(still)[:2]))
        exact = _in_real_space(self._summed(still).numerator, box)[self.inside]
        self.constant = float((exact * straight).sum() / straight.square().sum())

    @torch.no_grad()
    def change(self, rows: Int[Tensor, "b"]) -> Float[Tensor, "v"]:
        """Sum over images of what is laid on each voxel along the motion, less what is laid there without."""
        fine, rest, bent = self._places(rows)
        return self._laid(rows, fine, bent) - self._laid(rows, fine, rest)

    def _places(self, rows: Int[Tensor, "b"]) -> tuple[Tensor, Tensor, Tensor]:
        """Filtered images on a fine grid, and where the voxels are at rest and along the motion, angstrom."""
        box = self.observed.box
        stack = self.observed.stack
        ctf = None if stack.ctf is None else stack.ctf[rows]
        transfer = transfer_of(torch.zeros(len(rows), 2), ctf, box, pixel_size_A=self.observed.pixel_size_A)
        data = torch.fft.rfft2(torch.fft.ifftshift(self.observed.images(rows), dim=(-2, -1))) * self.weight
        if transfer is not None:
            data = data * transfer.conj()
        rest = self.voxel.expand(len(rows), -1, -1)
        with torch.no_grad():
            moved = self.result.model(self.result.z[rows]).position_A - self.rest
        carried = torch.from_numpy(self.follow @ moved.permute(1, 0, 2).flatten(1).numpy())
        return _finer(data, box), rest, rest + carried.unflatten(1, (len(rows), 3)).permute(1, 0, 2)

    def _laid(self, rows: Tensor, fine: Tensor, place: Tensor) -> Float[Tensor, "v"]:
        """Sum over images of the value at the pixel of each place."""
        box, pose = self.observed.box, self._pose(rows)
        ctf = None if self.observed.stack.ctf is None else self.observed.stack.ctf[rows]
        matrix = plane_matrix(pose.rotation, ctf).float()[:, :2]
        at = (place @ matrix.mT + pose.shift_A[:, None].float()) / self.observed.pixel_size_A
        size = fine.shape[-1]
        grid = 2 * (at * (size / box) + size // 2) / (size - 1) - 1
        read = torch.nn.functional.grid_sample(
            fine[:, None], grid[:, None], mode="bilinear", align_corners=True, padding_mode="zeros"
        )
        return read[:, 0, 0].sum(0)

    def finished(self, change: Float[Tensor, "v"], rows: Int[Tensor, "m"]) -> Backprojector:
        """The usual sums of images, and what the motion changes in them."""
        sums = self._summed(rows)
        box = sums.box
        values = torch.zeros(box, box, box)
        values[self.inside] = self.constant * self._windowed(change)
        half = _padded(values)
        half[:, :, 0] *= 0.5  # sums are stored without the mates of that plane
        return replace(sums, numerator=sums.numerator + half)

    def _windowed(self, laid: Float[Tensor, "v"]) -> Float[Tensor, "v"]:
        """Times the window that trilinear adding puts on a map."""
        box = self.observed.box
        offset = self.voxel / self.observed.pixel_size_A / (2 * box)
        return laid * torch.sinc(offset).square().prod(1)

    def _summed(self, rows: Tensor) -> Backprojector:
        box, stack = self.observed.box, self.observed.stack
        sums = Backprojector.empty(box, pixel_size_A=self.observed.pixel_size_A)
        for part in rows.split(256):
            ctf = None if stack.ctf is None else stack.ctf[part]
            power = self.observed.noise_power[: box // 2 + 1]
            sums.insert(self.observed.images(part), self._pose(part), ctf, noise_power=power)
        return sums

    def _pose(self, rows: Tensor) -> Pose:
        return self.result.pose[rows]


def _padded(values: Float[Tensor, "n n n"]) -> Complex[Tensor, "p p h"]:
    """Transform on the lattice of `Backprojector`: padded to twice the edge, rows centred."""
    n = values.shape[0]
    wide = values.new_zeros(2 * n, 2 * n, 2 * n)
    low, high = -(n // 2), n - n // 2
    index = torch.arange(low, high) % (2 * n)
    wide[index[:, None, None], index[:, None], index] = values
    return torch.fft.fftshift(torch.fft.rfftn(wide), dim=(0, 1))


def _in_real_space(half: Complex[Tensor, "p p h"], n: int) -> Float[Tensor, "n n n"]:
    """The inverse of `_padded`, of sums stored without the mates of the plane x = 0."""
    whole = half.clone()
    complete_plane(whole)
    wide = torch.fft.irfftn(torch.fft.ifftshift(whole, dim=(0, 1)), s=(2 * n,) * 3)
    index = torch.arange(-(n // 2), n - n // 2) % (2 * n)
    return wide[index[:, None, None], index[:, None], index]


def _followers(voxel: Float[Tensor, "v 3"], gaussian: Float[Tensor, "n 3"]) -> csr_array:
    """Sparse (v, n): how much each voxel follows the Gaussians nearest to it; rows sum to 1.

    Weights fall with the squared distance over that of the nearest neighbours, from the nearest Gaussian's on: a voxel far
    from all follows the nearest ones.
    """
    count = min(_NEIGHBOURS, len(gaussian))
    distance, index = KDTree(gaussian.double().numpy()).query(voxel.double().numpy(), k=count)
    distance = torch.from_numpy(distance).reshape(len(voxel), count)
    index = torch.from_numpy(index).reshape(len(voxel), count)
    near, _ = KDTree(gaussian.double().numpy()).query(gaussian.double().numpy(), k=min(2, len(gaussian)))
    spacing = max(float(torch.from_numpy(near).reshape(len(gaussian), -1)[:, -1].mean()), 1e-6)
    weight = (-0.5 * (distance / spacing).square()).softmax(1).float()
    start = torch.arange(0, index.numel() + 1, count)
    parts = (weight.flatten().numpy(), index.flatten().numpy(), start.numpy())
    return csr_array(parts, shape=(len(voxel), len(gaussian)))


def _finer(plane: Tensor, box: int) -> Float[Tensor, "b s s"]:
    """Images on a grid `_FINE` times as fine, origin at pixel s // 2, values as they were."""
    size = _FINE * box + (_FINE * box) % 2
    low, high = (box + 1) // 2, box // 2
    wide = plane.new_zeros(len(plane), size, size // 2 + 1)
    wide[:, :low, : plane.shape[-1]] = plane[:, :low]
    wide[:, size - high :, : plane.shape[-1]] = plane[:, low:]
    return torch.fft.fftshift(torch.fft.irfft2(wide, s=(size, size)), dim=(-2, -1)) * (size / box) ** 2
