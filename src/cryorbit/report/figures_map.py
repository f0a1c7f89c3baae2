"""Pictures of the map: slices, surface, and example particles beside their reprojections."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.fourier.filters import low_pass
from cryorbit.report.data import ExampleImages
from cryorbit.report.style import bare, figure, picture_address, png_address, round_length_A, scale_bar
from cryorbit.report.surface import render_surface

MAX_EXAMPLES = 6


def slices_figure(volume: Volume) -> str:
    """Central sections in the three directions, one grey scale for all."""
    values = volume.values.float().cpu().numpy()
    n = volume.box
    middle = n // 2
    low, high = np.percentile(values, [1.0, 99.8])
    fig = figure(9.6, 3.45)
    sections = {"x, y": values[middle], "x, z": values[:, middle], "y, z": values[:, :, middle]}
    for place, (name, section) in enumerate(sections.items()):
        axes = fig.add_subplot(1, 3, place + 1)
        axes.imshow(section, cmap="gray", vmin=low, vmax=max(high, low + 1e-12), interpolation="bilinear")
        axes.set_title(f"Section {name}")
        bare(axes)
        if place == 0:
            length = round_length_A(n * volume.pixel_size_A)
            scale_bar(axes, length_A=length, pixel_size_A=volume.pixel_size_A, box=n)
    return png_address(fig)


def surface_pictures(volume: Volume) -> tuple[dict[str, str], float, float] | None:
    """Addresses of the views by name, the density of the surface and the width of a picture in angstrom."""
    surface = render_surface(volume)
    if surface is None:
        return None
    pictures = {name: picture_address(rgba) for name, rgba in surface.pictures.items()}
    return pictures, surface.level, surface.edge_A


def correlation(a: Float[Tensor, "k h w"], b: Float[Tensor, "k h w"]) -> Float[Tensor, "k"]:
    """Pearson correlation of each pair of images."""
    a, b = (x.double() - x.double().mean((-1, -2), keepdim=True) for x in (a, b))
    norm = (a.square().sum((-1, -2)) * b.square().sum((-1, -2))).sqrt().clamp_min(1e-30)
    return (a * b).sum((-1, -2)) / norm


def _short(label: str) -> str:
    """A particle's id without the file it comes from.

    >>> _short("000012@Extract/job003/stack.mrcs")
    '000012'
    """
    return label.split("@")[0][-16:]


def examples_figure(examples: ExampleImages, *, pixel_size_A: float) -> str:
    """Particle, the same smoothed for the eye, and reprojection, in columns."""
    k = min(MAX_EXAMPLES, len(examples.images))
    images, predicted = examples.images[:k].float().cpu(), examples.reprojections[:k].float().cpu()
    smooth = low_pass(images, resolution_A=max(25.0, 5 * pixel_size_A), pixel_size_A=pixel_size_A, ndim=2)
    agreement = correlation(smooth, predicted)
    box = images.shape[-1]
    fig = figure(9.6, 9.6 / 6 * 3 + 0.45)
    rows = (("Particle", images), ("Smoothed", smooth), ("Reprojection", predicted))
    for row, (name, pictures) in enumerate(rows):
        for column in range(k):
            axes = fig.add_subplot(3, MAX_EXAMPLES, row * MAX_EXAMPLES + column + 1)
            picture = pictures[column]
            low, high = torch.quantile(picture.flatten(), torch.tensor([0.005, 0.995])).tolist()
            axes.imshow(
                picture.numpy(), cmap="gray", vmin=low, vmax=max(high, low + 1e-12), interpolation="bilinear"
            )
            bare(axes)
            if column == 0:
                axes.set_ylabel(name, fontsize=10)
            if row == 0 and column < len(examples.labels):
                axes.set_title(_short(examples.labels[column]), fontsize=8, fontweight="normal", loc="center")
            if row == 2:
                axes.set_xlabel(f"correlation {float(agreement[column]):.2f}", fontsize=9)
            if row == 0 and column == 0:
                length = round_length_A(box * pixel_size_A)
                scale_bar(axes, length_A=length, pixel_size_A=pixel_size_A, box=box)
    return png_address(fig, dpi=150)
