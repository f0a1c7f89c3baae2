"""What the pose benchmark draws, trains and scores: one small specimen, fresh projections, fresh noise.

Nothing is stored between steps: every training image is a new rotation with new noise, and the test images come from a
generator of their own. Scores refer to the grid of `so3_grid(order)`: the negative log-likelihood is that of the cell
that holds the truth, in nats, log(number of cells) for the uniform distribution.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Pose, Volume
from cryorbit.geometry.rotations import geodesic_angle, random_rotations
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.inference.refine import DiskData, half_disk, refine_poses
from cryorbit.io.atoms import read_atoms
from cryorbit.models.pose_encoder import PoseEncoder
from cryorbit.models.slice_encoder import SliceEncoder, SliceSettings
from cryorbit.models.so3_losses import (
    cell_nll,
    cell_of,
    covered,
    distillation_kl,
    entropy_nats,
    exact_nll,
    n_cells,
)
from cryorbit.physics.project import FourierVolume, prepare, project_prepared
from cryorbit.physics.scatter import atoms_to_density

BOX, PIXEL_A, SNR = 32, 2.0, 0.5
"""Of the table: 32 pixels of 2 A, variance of signal over that of noise 0.5 per pixel of the whole box."""

B_FACTOR_A2 = 500.0
"""Blur of the atoms. The published table does not state one; this gives its exhaustive row within its spread."""

MAX_RADIUS = 9.0
"""Rings that the encoders use, Fourier pixels: 7.1 A. Beyond, the blurred map is far below the noise."""


@dataclass(frozen=True, eq=False)
class Specimen:
    """A known map and the noise that its images carry."""

    volume: Volume
    prepared: FourierVolume
    sigma: float
    """Standard deviation of the noise of a pixel; 0 for clean projections."""

    def project(self, rotation: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n h w"]:
        """Noise-free images."""
        parts = [
            project_prepared(self.prepared, Pose(part, part.new_zeros(len(part), 2)))
            for part in rotation.split(1024)
        ]
        return torch.cat(parts)

    def draw(self, n: int, generator: torch.Generator, *, copies: int = 1) -> Drawn:
        """Images at fresh rotations with fresh noise; `copies` images of each rotation, with noise of their own."""
        rotation = random_rotations(n // copies, generator=generator, dtype=torch.float32)
        clean = self.project(rotation).repeat(copies, 1, 1)
        rotation = rotation.repeat(copies, 1, 1)
        return Drawn(clean + self.sigma * torch.randn(clean.shape, generator=generator), rotation)

    def noise_power(self) -> float:
        """Of a coefficient of the unnormalised transform."""
        return self.sigma**2 * self.volume.box**2


@dataclass(frozen=True, eq=False)
class Drawn:
    """Images and the rotations they were made at."""

    images: Float[Tensor, "n h w"]
    rotation: Float[Tensor, "n 3 3"]


def specimen_of(volume: Volume, *, snr: float = SNR) -> Specimen:
    """The map with the noise of the wanted SNR, from 500 projections; none at SNR inf."""
    clean = Specimen(volume, prepare(volume), 0.0)
    generator = torch.Generator().manual_seed(123)
    images = clean.draw(500, generator).images
    variance = float(images.var((1, 2), unbiased=False).mean())
    return Specimen(volume, clean.prepared, math.sqrt(variance / snr))


def specimen_of_atoms(path: Path) -> Specimen:
    """Heavy atoms of a structure file at the table's box, pixel size, blur and SNR."""
    density = atoms_to_density(read_atoms(path), box=BOX, pixel_size_A=PIXEL_A, b_factor_A2=B_FACTOR_A2)
    return specimen_of(density)


def phantom(group: Float[Tensor, "g 3 3"] | None = None, *, seed: int = 0) -> Volume:
    """Twelve Gaussian balls of 4 A within 16 A of the centre, repeated by the symmetry: no interpolation anywhere."""
    centres, weights = phantom_balls(group, seed=seed)
    axis = (torch.arange(BOX) - BOX // 2) * PIXEL_A
    each = torch.exp(-0.5 * ((axis - centres[..., None]) / 4.0) ** 2)
    return Volume(torch.einsum("i,iz,iy,ix->zyx", weights, each[:, 2], each[:, 1], each[:, 0]), PIXEL_A)


def phantom_balls(group: Float[Tensor, "g 3 3"] | None, *, seed: int) -> tuple[Tensor, Tensor]:
    """Centres in A and weights of the balls."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, 3, generator=generator)
    centres = (
        centres / centres.norm(dim=1, keepdim=True) * 16 * torch.rand(12, 1, generator=generator) ** (1 / 3)
    )
    weights = 0.5 + torch.rand(12, generator=generator)
    if group is None:
        return centres - (weights[:, None] * centres).sum(0) / weights.sum(), weights
    copies = (group.float() @ centres[:, None, :, None])[..., 0].reshape(-1, 3)
    return copies, weights.repeat_interleave(len(group))


def encoder_with_map(specimen: Specimen, *, order: int, fine: int) -> SliceEncoder:
    """The map branch alone: the exact posterior, summed over 8^fine cells into each of the grid's."""
    settings = SliceSettings(
        box=specimen.volume.box, order=order, fine=fine, max_radius=MAX_RADIUS, learned=False
    )
    encoder = SliceEncoder(settings)
    encoder.set_noise(specimen.noise_power())
    encoder.set_map(specimen.volume)
    return encoder


def grid_posterior(
    specimen: Specimen, images: Float[Tensor, "n h w"], *, order: int
) -> Float[Tensor, "n cells"]:
    """Brute force: log-likelihood of every rotation of the grid, pixel by pixel, from as many projections."""
    flat, out = images.flatten(1), []
    for rotation in so3_grid(order).reshape(-1, 3, 3).split(4096):
        templates = specimen.project(rotation).flatten(1)
        out.append((flat @ templates.mT - 0.5 * templates.square().sum(1)) / specimen.sigma**2)
    return torch.cat(out, 1)


def predict(
    encoder: PoseEncoder, images: Float[Tensor, "n h w"], *, batch: int = 50
) -> Float[Tensor, "n cells"]:
    """Logits of all images."""
    encoder.eval()
    with torch.no_grad():
        out = torch.cat([encoder(part).logits for part in images.split(batch)])
    encoder.train()
    return out


def scores(
    logits: Float[Tensor, "n cells"], truth: Float[Tensor, "n 3 3"], *, order: int
) -> dict[str, float]:
    """The numbers of a row, for the most probable cell and for the distribution."""
    cell = cell_of(truth, order=order)
    best = so3_grid(order).reshape(-1, 3, 3)[logits.argmax(1)]
    return angle_scores(best, truth) | {
        "nll": float(cell_nll(logits, cell).mean()),
        "entropy": float(entropy_nats(logits).mean()),
        "coverage95": float(covered(logits, cell).float().mean()),
    }


def angle_scores(best: Float[Tensor, "n 3 3"], truth: Float[Tensor, "n 3 3"]) -> dict[str, float]:
    """Median error and the share within 15 degrees."""
    error = torch.rad2deg(geodesic_angle(best, truth))
    return {"median_deg": float(error.median()), "within_15deg": float((error < 15).float().mean())}


def chance_scores(n: int, *, order: int, generator: torch.Generator) -> dict[str, float]:
    """Random rotations and the uniform distribution."""
    a, b = random_rotations(2 * n, generator=generator, dtype=torch.float32).chunk(2)
    uniform = math.log(n_cells(order))
    return angle_scores(a, b) | {"nll": uniform, "entropy": uniform, "coverage95": 0.95}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an encoder is trained on fresh projections."""

    seconds: float
    """Of this process's CPU time, projections and noise included."""
    loss: str = "cell"
    """"cell": likelihood of the cell; "exact": at the exact rotation; "distil": KL to `teacher`."""
    rate: float = 3e-3
    batch: int = 256
    copies: int = 4
    """Images of a batch that share a projection; projecting costs more than noise does."""


def train(
    encoder: PoseEncoder,
    specimen: Specimen,
    training: Training,
    *,
    order: int,
    generator: torch.Generator,
    teacher: PoseEncoder | None = None,
) -> dict[str, Any]:
    """Adam with a cosine in time; what it took."""
    grid = so3_grid(order).reshape(-1, 3, 3)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=training.rate)
    start, steps = time.process_time(), 0
    while (done := (time.process_time() - start) / training.seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = training.rate * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-5
        drawn = specimen.draw(training.batch, generator, copies=training.copies)
        logits = encoder(drawn.images).logits
        if teacher is not None and training.loss == "distil":
            with torch.no_grad():
                target = teacher(drawn.images).logits
            loss = distillation_kl(target, logits)
        elif training.loss == "exact":
            loss = exact_nll(logits, drawn.rotation, grid=grid, order=order)
        else:
            loss = cell_nll(logits, cell_of(drawn.rotation, order=order))
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        steps += 1
    seconds = time.process_time() - start
    return {"seconds": round(seconds, 2), "steps": steps, "image_visits": steps * training.batch}


def refine_top(
    specimen: Specimen,
    drawn: Drawn,
    logits: Float[Tensor, "n cells"],
    *,
    order: int,
    k: int = 8,
    iterations: int = 5,
) -> Float[Tensor, "n 3 3"]:
    """Best of the k most probable cells after damped Gauss-Newton on the image itself; shifts stay at 0."""
    start = so3_grid(order).reshape(-1, 3, 3)[logits.topk(k, 1).indices].reshape(-1, 3, 3)
    box, points = specimen.volume.box, half_disk(MAX_RADIUS + 3)
    centred = torch.fft.fftshift(
        torch.fft.fft2(torch.fft.ifftshift(drawn.images, dim=(-2, -1))), dim=(-2, -1)
    )
    values = centred[:, points[:, 1].long() + box // 2, points[:, 0].long() + box // 2]
    deviation = math.sqrt(specimen.noise_power())
    each = torch.arange(len(drawn.images)).repeat_interleave(k)
    data = DiskData(
        values[each] / deviation, torch.full((len(each), len(points)), 1 / deviation), points, box
    )
    still = torch.zeros(len(each), 2)
    refined = refine_poses(
        data, specimen.prepared.half, start, still, iterations=iterations, shift_sd_px=1e-3
    )
    best = refined.log_likelihood.view(-1, k).argmax(1)
    return refined.rotation.view(-1, k, 3, 3)[torch.arange(len(best)), best]


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What the work returns, and its CPU seconds."""
    start = time.process_time()
    result = work()
    return result, round(time.process_time() - start, 2)
