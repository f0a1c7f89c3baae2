"""A stack of images with poses into the two volumes of its likelihood, once; how far two of them agree."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation, fourier_shell_correlation
from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.image_sums import ImageSums
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.physics.noise import noise_spectrum

_BLOCK_PIXELS = 500_000
_SAMPLE = 1000


def group_noise(
    stack: ParticleStack, *, radius_px: float, edge_px: float = 4.0, seed: int = 0
) -> Float[Tensor, "groups shells"]:
    """Noise power per shell of each optics group, from up to 1,000 of its images outside a circle.

    Rows in the order of the sorted group numbers, one row if the stack has no groups; units of `physics.noise`. The mean is
    taken off each image there, so the first two shells take the value of the third.

    Parameters
    ----------
    radius_px, edge_px
        Of the circle that particles lie in, and how much farther out its mask reaches 1.
    """
    generator = torch.Generator().manual_seed(seed)
    index = group_index(stack)
    out = []
    for g in range(int(index.max()) + 1):
        rows = torch.nonzero(index == g)[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)[:_SAMPLE]].sort().values
        power = noise_spectrum(stack.images[rows], radius_px=radius_px, edge_px=edge_px).power
        power[:2] = power[2]
        out.append(power)
    return torch.stack(out)


def group_index(stack: ParticleStack) -> Int[Tensor, "n"]:
    """0, 1, ... per image: which row of `group_noise` is its own."""
    if stack.optics_group is None:
        return torch.zeros(len(stack), dtype=torch.long)
    return torch.unique(stack.optics_group, return_inverse=True)[1]


def collapse(
    stack: ParticleStack,
    noise_power: Float[Tensor, "*groups shells"],
    *,
    rows: Int[Tensor, "m"] | None = None,
    pose: Pose | None = None,
    read: Callable[[Int[Tensor, "k"]], Float[Tensor, "k box box"]] | None = None,
    width: int = 6,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> TwoVolumes:
    """The two volumes of the stack's images, read once in blocks.

    Parameters
    ----------
    noise_power
        Per shell (box // 2 + 1 values), one row or one row per optics group, as `group_noise` gives it.
    rows
        Which images; all if None.
    pose
        In place of the stack's own, one per image of the whole stack: the draw of a pose posterior.
    read
        Gives the images of some rows, light protein (`Observations.images`); the stack's own pixels otherwise.
    width
        Points of the gridding kernel, see `ImageSums`.

    Raises
    ------
    BadInput
        If there is no pose or no image, or there are not as many noise spectra as optics groups.
    """
    pose = stack.pose if pose is None else pose
    if pose is None:
        raise BadInput(f"{stack.source}: no poses, so nothing to collapse. Find them first.")
    rows = torch.arange(len(stack)) if rows is None else rows
    if len(rows) == 0:
        raise BadInput(f"{stack.source}: no images to collapse. Choose some.")
    power = noise_power.to(device).reshape(-1, noise_power.shape[-1])
    index = group_index(stack)
    if len(power) not in (1, int(index.max()) + 1):
        raise BadInput(
            f"{stack.source}: {len(power)} noise spectra for {int(index.max()) + 1} optics groups. Give one, or one each."
        )
    if len(power) == 1:
        index = torch.zeros_like(index)
    read = stack.images.__getitem__ if read is None else read
    sums = ImageSums(stack.box, pixel_size_A=stack.pixel_size_A, width=width, device=device)
    for part in rows.split(max(1, _BLOCK_PIXELS // stack.box**2)):
        ctf = None if stack.ctf is None else stack.ctf[part]
        some = Pose(pose.rotation[part].to(device), pose.shift_A[part].to(device))
        sums.insert(read(part).to(device), some, ctf, noise_power=power[index[part].to(power.device)])
    return sums.finish(dtype=dtype)


def data_correlation(
    first: TwoVolumes, second: TwoVolumes, *, mask: Volume | None = None
) -> ShellCorrelation:
    """Correlation by shells of the maps that two likelihoods give without a prior.

    Each is the least squares map with a ridge of a thousandth of the mean weight, which only keeps directions that no image
    saw at zero.
    """
    maps = []
    for data in (first, second):
        rho = (1e-3 * float(data.weight.double().mean())) ** -0.5
        maps.append(
            Volume(data.prox(torch.zeros_like(data.back_projection), rho, tolerance=1e-3), data.pixel_size_A)
        )
    return fourier_shell_correlation(maps[0], maps[1], mask=mask)
