"""What two maps need before they can be compared: one grid, a band, a rough centre."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.spectrum import low_band
from cryorbit.analysis.transform_map import transform_map
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.resample import box_pad
from cryorbit.fourier.shells import shell_mean, spread_shells

SMALLEST_BOX = 10
"""Maps of fewer voxels per edge have no shells left for a search."""


def shells_to(resolution_A: float, reference: Volume) -> int:
    """Number of shells up to a resolution, within 0.8 of Nyquist."""
    wanted = int(reference.box * reference.pixel_size_A / resolution_A)
    return max(4, min(wanted, int(0.4 * reference.box)))


def refuse_unusable(name: str, volume: Volume) -> None:
    """Raise if there is nothing to align.

    Raises
    ------
    BadInput
        If the map is constant, not finite, or smaller than `SMALLEST_BOX`.
    """
    if not bool(torch.isfinite(volume.values).all()) or float(volume.values.std()) == 0:
        raise BadInput(f"align: the {name} map is constant or not finite. Give a map with density in it.")
    if volume.box < SMALLEST_BOX:
        raise BadInput(
            f"align: the {name} map has a box of {volume.box} voxels, wanted {SMALLEST_BOX} or more. "
            "Give it on smaller voxels."
        )


def working_cube(reference: Volume, moving: Volume) -> Volume:
    """The reference, padded with zeros where the moving map's box is larger: no density may fall outside."""
    box = round(moving.box * moving.pixel_size_A / reference.pixel_size_A)
    if box <= 1.1 * reference.box:
        return reference
    box += (box - reference.box) % 2
    return Volume(box_pad(reference.values, box, ndim=3), reference.pixel_size_A)


def on_same_grid(moving: Volume, reference: Volume) -> Volume:
    """The moving map on the reference's grid, low-passed first where the reference is coarser.

    Raises
    ------
    BadInput
        If that leaves nothing to compare.
    """
    same = abs(moving.pixel_size_A - reference.pixel_size_A) < 1e-3 * reference.pixel_size_A
    if same and moving.box == reference.box:
        return moving
    one = torch.eye(3, dtype=torch.float64)
    edge_A = moving.box * moving.pixel_size_A
    kmax = int(edge_A / (2.0 * reference.pixel_size_A)) - 1
    if kmax < 2:
        raise BadInput(
            f"align: a map of {edge_A:.0f} A cannot be compared on a grid of {reference.pixel_size_A:g} A. "
            "Check the pixel sizes in the headers."
        )
    smooth = low_band(moving, kmax=kmax) if kmax < moving.box // 2 - 1 else moving
    return transform_map(smooth, rotation=one, shift_A=torch.zeros(3), like=reference)


def centre_of_mass(volume: Volume) -> Float[Tensor, "3"]:
    """Centre of the density above two standard deviations, as a fraction of the box from index N // 2."""
    values = volume.values
    weight = (values - values.mean() - 2.0 * values.std()).clamp_min(0.0)
    x = (torch.arange(volume.box, device=values.device) - volume.box // 2).to(values) / volume.box
    total = weight.sum().clamp_min(1e-30)
    return torch.stack([(weight.sum(dim) * x).sum() / total for dim in ((0, 1), (0, 2), (1, 2))])


def whitened(volume: Volume, *, kmax: int, falling: float = 0.5) -> Volume:
    """The shells 1 to kmax, each with a root mean square of k^-falling; nothing else."""
    n = volume.box
    transform = torch.fft.rfftn(volume.values)
    rms = shell_mean(transform.abs().double() ** 2, n=n, ndim=3).sqrt()
    k = torch.arange(len(rms), dtype=torch.float64, device=rms.device)
    gain = torch.where((k >= 1) & (k <= kmax) & (rms > 0), k.clamp_min(1.0) ** -falling / rms, 0.0)
    factor = spread_shells(gain.to(volume.values.dtype), n=n, ndim=3)
    return Volume(torch.fft.irfftn(transform * factor, s=volume.values.shape), volume.pixel_size_A)
