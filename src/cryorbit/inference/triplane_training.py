"""Training of a tri-plane prior: first the codec between maps and planes, then the denoiser of the planes of its maps.

Both are loops of `inference.prior.train_prior`; between them the planes' mean and spread are measured, which whiten them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.data import Atoms
from cryorbit.errors import BadInput
from cryorbit.fourier.shells import shell_mean
from cryorbit.geometry.principal_axes import principal_rotation
from cryorbit.inference.engine import Progress
from cryorbit.inference.prior import PriorSettings, TaskLoss, train_prior
from cryorbit.inference.prior_data import VolumeSource
from cryorbit.inference.triplane_fit import moved_maps
from cryorbit.models.score import TrainingNoise
from cryorbit.models.triplane import moved_planes
from cryorbit.models.triplane_prior import TriplanePrior

LATENT_NOISE = 0.2
"""Put on planes while the codec is trained, so that maps change little where a denoiser errs by so much. Planes come out of
standard deviation near 0.9; with it maps of proteins held back lost 0.003 of Pearson correlation to such noise."""
SMALL_PLANES = 1e-3
"""Weight of the planes' mean square beside the maps' relative square error: else they would grow to drown the noise."""


def upright(atoms: Atoms) -> Atoms:
    """A structure turned so that its principal axes are x, y and z."""
    mass = (atoms.occupancy * atoms.atomic_number).to(atoms.position_A)
    return replace(atoms, position_A=atoms.position_A @ principal_rotation(atoms.position_A, mass).mT)


class CodecTask:
    """Maps for the codec of a `TriplanePrior`; its weights are trained in place."""

    def __init__(self, prior: TriplanePrior, source: VolumeSource) -> None:
        self._prior, self._source = prior, source

    @property
    def network(self) -> nn.Module:
        """Encoder and decoder."""
        return self._prior.network.codec

    def loss(self, step: int, noise: TrainingNoise, generator: torch.Generator) -> TaskLoss:
        """Square error over the mean square of the training maps, both moved by the same random part of a voxel.

        So the decoder is right between the voxels as well. `noise` is the denoiser's, and plays no part.
        """
        codec = self._prior.network.codec
        weight = next(codec.parameters())
        maps = (self._source(step).density[:, 0] / self._prior.shape.density_scale).to(weight)
        shift = (torch.rand(len(maps), 3, generator=generator) - 0.5).to(weight)
        planes = codec.encoder(maps)
        noisy = planes + LATENT_NOISE * torch.randn(planes.shape, generator=generator).to(weight)
        found = codec.decoder.at_voxels(moved_planes(noisy, shift))
        error = (found - moved_maps(maps, shift)).square().flatten(1).mean(1)
        size = planes.square().flatten(1).mean(1)
        return TaskLoss(error + SMALL_PLANES * size, torch.full_like(error, torch.nan))

    def prior(self, network: nn.Module) -> TriplanePrior:
        """The same prior with the codec of another network."""
        return _with(self._prior, "codec.", network.state_dict())


class PlanesTask:
    """Planes for the denoiser of a `TriplanePrior`; its weights are trained in place, the codec stays."""

    def __init__(self, prior: TriplanePrior, source: VolumeSource) -> None:
        self._prior, self._source = prior, source

    @property
    def network(self) -> nn.Module:
        """The denoiser's network."""
        return self._prior.network.unet

    def loss(self, step: int, noise: TrainingNoise, generator: torch.Generator) -> TaskLoss:
        """Mean square error per element of the whitened planes, over that of the Wiener filter of their spectrum."""
        weight = next(self._prior.network.parameters())
        with torch.no_grad():
            clean = self._prior.to_latent(self._source(step).density[:, 0].to(weight))
        sigma = noise.draw(torch.ones(len(clean)), generator=generator).to(weight)
        fresh = torch.randn(clean.shape, generator=generator).to(weight)
        found = self._prior.denoise(clean + sigma.view(-1, 1, 1, 1, 1) * fresh, sigma)
        error = (found.clean - clean).square().flatten(1).mean(1)
        return TaskLoss(error / found.expected_error**2, sigma)

    def prior(self, network: nn.Module) -> TriplanePrior:
        """The same prior with the denoiser of another network."""
        return _with(self._prior, "unet.", network.state_dict())


def _with(prior: TriplanePrior, part: str, weights: dict[str, Tensor]) -> TriplanePrior:
    tensors = {**prior.tensors(), **{part + name: t for name, t in weights.items()}}
    return TriplanePrior.from_state(tensors, prior.card())


@torch.no_grad()
def whitened(prior: TriplanePrior, source: VolumeSource, *, batches: int) -> TriplanePrior:
    """The prior with what the planes of the first batches have in common: mean, standard deviations, spectrum."""
    weight = next(prior.network.parameters())
    planes = torch.cat(
        [prior.to_planes(prior.to_latent(source(i).density[:, 0].to(weight))) for i in range(batches)]
    )
    mean = planes.mean(0)
    spread = (planes - mean).std((0, 3, 4)).clamp_min(1e-3)
    power = (
        torch.fft.rfft2((planes - mean) / spread[..., None, None], norm="ortho")
        .abs()
        .square()
        .mean((0, 1, 2))
    )
    spectrum = shell_mean(power, n=power.shape[0], ndim=2).clamp_min(1e-6)
    kept = {"mean": mean, "spread": spread.flatten(), "spectrum": spectrum}
    return _of_constants(prior, kept, prior.network.codec.state_dict())


def _of_constants(prior: TriplanePrior, kept: dict[str, Tensor], codec: dict[str, Tensor]) -> TriplanePrior:
    """A prior with a codec and constants, its denoiser new."""
    shape = replace(
        prior.shape,
        latent_spread=tuple(kept["spread"].tolist()),
        latent_spectrum=tuple(kept["spectrum"].tolist()),
    )
    again = TriplanePrior(shape, generator=torch.Generator().manual_seed(1))
    again.network.codec.load_state_dict(codec)
    again.network.mean.copy_(kept["mean"])
    again.network.codec.requires_grad_(False)
    return again


@dataclass(frozen=True, eq=False)
class HeldBack:
    """Densities (b, n, n, n) that are not trained on."""

    density: Float[Tensor, "b n n n"]
    levels: Sequence[float]
    """Of noise, in spreads of the data, that the denoiser is looked at."""

    def of_codec(self, prior: TriplanePrior, state: dict[str, Any]) -> dict[str, float]:
        """Metrics of the prior with the averaged codec of a record's state."""
        return {"validation_pearson": self.pearson(_with(prior, "codec.", _averaged(state)))}

    def of_denoiser(self, prior: TriplanePrior, state: dict[str, Any]) -> dict[str, float]:
        """Metrics of the prior with the averaged denoiser of a record's state."""
        losses = self.loss(_with(prior, "unet.", _averaged(state)))
        decibel = [-10 * math.log10(max(loss, 1e-12)) for loss in losses]
        return {"validation_dB": sum(decibel) / len(decibel)}

    @torch.no_grad()
    def pearson(self, prior: TriplanePrior) -> float:
        """Mean correlation of the maps with what the codec leaves of them."""
        maps = self.density / prior.shape.density_scale
        pair = torch.stack((prior.network.codec(maps), maps)).flatten(2)
        a, b = pair - pair.mean(2, keepdim=True)
        return float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean())

    @torch.no_grad()
    def loss(self, prior: TriplanePrior) -> list[float]:
        """Square error of the denoiser at each level over that of the Wiener filter of the planes' spectrum."""
        clean = prior.to_latent(self.density)
        fresh = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        found = []
        for level in self.levels:
            noisy, sigma = clean + level * fresh, clean.new_full((len(clean),), level)
            errors = (
                (estimate - clean).square().mean()
                for estimate in (prior.denoise(noisy, sigma).clean, prior.start(noisy, sigma).estimate)
            )
            found.append(float(next(errors) / next(errors)))
        return found


def _averaged(state: dict[str, Any]) -> dict[str, Tensor]:
    start = "average.weight."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def train_triplanes(
    prior: TriplanePrior,
    source: VolumeSource,
    settings: PriorSettings,
    *,
    codec_steps: int,
    measured_batches: int,
    held: HeldBack | None = None,
    state: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Trains the codec, then the denoiser of its planes; the last record carries the prior, with averaged weights.

    Metrics are those of `train_prior`; of the codec "loss" is the square error of maps over their mean square. With maps
    held back also "validation_pearson", their correlation with what the codec leaves of them, and "validation_dB", how far
    the error of their planes lies below that of a Wiener filter, averaged over levels of noise; of the averaged weights.

    Parameters
    ----------
    prior
        New; without constants in its card.
    codec_steps, measured_batches
        Steps of the codec's training, and batches that the planes' mean and spread are measured on.
    state
        Of an earlier record: goes on from there, to the same result.
    """
    if codec_steps < 1 or measured_batches < 1:
        raise BadInput("train_triplanes: --codec-steps and --measured-batches have to be 1 or more.")
    total = codec_steps + settings.steps
    state = dict(state or {})
    if "planes.mean" not in state:
        for record in train_prior(
            CodecTask(prior, source), replace(settings, steps=codec_steps), state=state or None
        ):
            if record.result is None:
                found = held.of_codec(prior, record.state) if held else {}
                fraction, metrics = record.step / total, record.metrics | found
                yield replace(record, stage="learning planes", fraction=fraction, metrics=metrics)
            else:
                prior = whitened(record.result, source, batches=measured_batches)
        state = {}
    else:
        codec, kept = (
            {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
            for part in ("codec.", "planes.")
        )
        prior = _of_constants(prior, kept, codec)
    kept = {
        **{f"codec.{name}": t for name, t in prior.network.codec.state_dict().items()},
        "planes.mean": prior.network.mean,
        "planes.spread": torch.tensor(prior.shape.latent_spread, dtype=torch.float64),
        "planes.spectrum": torch.tensor(prior.shape.latent_spectrum, dtype=torch.float64),
    }
    for record in train_prior(PlanesTask(prior, source), settings, state=state or None):
        if record.result is None:
            found = held.of_denoiser(prior, record.state) if held else {}
            fraction, metrics = min((codec_steps + record.step) / total, 0.99), record.metrics | found
            record = replace(record, fraction=fraction, metrics=metrics, state={**record.state, **kept})
        yield record
