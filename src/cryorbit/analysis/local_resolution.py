"""Resolution as it varies through a map: the FSC of two half maps in a soft window that moves over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate, max_pool3d, pad

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import soft_sphere_mask
from cryorbit.fourier.shells import sample_weight, shell_index, shell_mean, spread_shells

_WINDOW = 10.0
"""Diameter of the window in units of the map's resolution: the crossing then lies near the tenth shell of the
window's transform, where some two hundred independent coefficients fix the correlation to 0.06."""

_SMALLEST_PX = 16
_STEPS_PER_RADIUS = 5
_VOXELS_AT_A_TIME = 2_000_000
_FLOOR = 1e-5
"""Amplitudes below this share of the largest are rounding, not data."""


@dataclass(frozen=True, kw_only=True)
class LocalResolutionSettings:
    """How local resolution is measured."""

    local_threshold: float = 0.5
    """FSC at which the local resolution is read: 0.5, or 0.143 if the windows are wide."""
    local_window_A: float | None = None
    """Diameter of the moving window; 10 times the resolution of the whole map unless given."""
    local_step_A: float | None = None
    """Distance between windows; a fifth of their radius unless given."""


@dataclass(frozen=True, eq=False)
class LocalResolutionStep:
    """Progress; the last step carries the `result`, a map of resolution in angstrom, 0 outside the mask."""

    step: int
    steps: int
    result: Volume | None = None
    stage: str = "local resolution"
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Share of the windows that are done."""
        return self.step / self.steps


def local_resolution(
    half1: Volume, half2: Volume, mask: Volume, settings: LocalResolutionSettings, *, resolution_A: float
) -> Iterator[LocalResolutionStep]:
    """Yield progress; the last step carries the map of local resolution.

    Both half maps are first divided by one radial profile, their mean amplitude, so that strong coarse shells do
    not leak into fine ones through the window; their correlation does not change by that. Windows are spheres,
    even within half their radius and falling to 0 at all of it, at the points of a grid that the mask touches.
    Between those points 1 / resolution is interpolated.

    Parameters
    ----------
    half1, half2
        Unfiltered and unmasked half maps.
    mask
        Where to measure: values above one half.
    resolution_A
        Of the whole map; sets the window.

    Raises
    ------
    BadInput
        If boxes differ, the mask is empty, or the window or threshold cannot be used.
    """
    _refuse(half1, half2, mask, settings)
    window = _Window.of(half1, settings, resolution_A=resolution_A)
    inside = mask.values > 0.5
    centres, valid = _grid(inside, window.step)
    whitened, finest = _whitened(half1, half2)
    margin = window.box // 2
    padded = [pad(x, (margin, window.box + window.step) * 3) for x in whitened]
    parts = centres.split(max(1, _VOXELS_AT_A_TIME // window.box**3))
    found, done = [], 0
    for part in parts:
        found.append(window.crossing(padded, part, threshold=settings.local_threshold))
        done += len(part)
        if done < len(centres):
            yield LocalResolutionStep(done, len(centres))
    frequency = torch.cat(found).clamp_max(finest)
    values = _spread(frequency, valid, window.step, half1.box)
    values = torch.where(inside, 1.0 / values.clamp_min(1e-12), 0.0).to(half1.values)
    result = Volume(values, half1.pixel_size_A, half1.origin_A, half1.nstart)
    yield LocalResolutionStep(len(centres), len(centres), result)


def _refuse(half1: Volume, half2: Volume, mask: Volume, settings: LocalResolutionSettings) -> None:
    if not half1.box == half2.box == mask.box:
        raise BadInput(
            f"Local resolution: boxes of half maps and mask are {half1.box}, {half2.box} and {mask.box}. "
            "Crop or pad them to one."
        )
    if not 0 < settings.local_threshold < 1:
        raise BadInput(f"Local resolution: threshold {settings.local_threshold} is not between 0 and 1.")
    if not bool((mask.values > 0.5).any()):
        raise BadInput("Local resolution: the mask is nowhere above one half. Give another mask.")


@dataclass(frozen=True, eq=False)
class _Window:
    """The window, and how its transforms become correlations per shell."""

    box: int
    step: int
    weight: Float[Tensor, "w w w"]
    to_shells: Float[Tensor, "k shells"]
    frequency_per_A: Float[Tensor, "shells"]

    @staticmethod
    def of(volume: Volume, settings: LocalResolutionSettings, *, resolution_A: float) -> _Window:
        pixel, like = volume.pixel_size_A, volume.values
        diameter = _WINDOW * resolution_A if settings.local_window_A is None else settings.local_window_A
        box = max(_SMALLEST_PX, 2 * round(diameter / pixel / 2))
        if box > volume.box:
            box = volume.box - volume.box % 2
        step = box / 2 / _STEPS_PER_RADIUS if settings.local_step_A is None else settings.local_step_A / pixel
        weight = soft_sphere_mask(box, radius_px=box / 4, edge_px=box / 4, device=like.device)
        index = shell_index(box, ndim=3, device=like.device).flatten()
        shells = box // 2 + 1
        to_shells = torch.zeros(len(index), shells + 1, device=like.device)
        to_shells[torch.arange(len(index)), index.clamp_max(shells)] = sample_weight(
            box, ndim=3, device=like.device
        ).flatten()
        frequency = torch.arange(shells, device=like.device) / (box * pixel)
        return _Window(box, max(1, round(step)), weight, to_shells[:, :shells], frequency)

    def crossing(
        self, padded: list[Float[Tensor, "p p p"]], centres: Int[Tensor, "c 3"], *, threshold: float
    ) -> Float[Tensor, "c"]:
        """Frequency at which the correlation within the window at each centre first falls below the threshold."""
        z, y, x = centres.unbind(-1)
        cut = [
            p.unfold(0, self.box, 1).unfold(1, self.box, 1).unfold(2, self.box, 1)[z, y, x] for p in padded
        ]
        f1, f2 = (torch.fft.rfftn(c * self.weight, dim=(-3, -2, -1)).flatten(1) for c in cut)
        cross = (f1.real * f2.real + f1.imag * f2.imag) @ self.to_shells
        power = [(f.real.square() + f.imag.square()) @ self.to_shells for f in (f1, f2)]
        norm = (power[0] * power[1]).sqrt()
        correlation = torch.where(norm > 0, cross / norm.clamp_min(1e-30), 0.0)
        return first_crossing(self.frequency_per_A, correlation, threshold)


def first_crossing(
    frequency_per_A: Float[Tensor, "shells"], correlation: Float[Tensor, "c shells"], threshold: float
) -> Float[Tensor, "c"]:
    """Frequency of each curve's first fall below the threshold, linear between shells.

    The first shell of a window has three or four independent coefficients, too few to be asked: it counts as
    resolved. A curve that never falls gives the last shell's frequency.
    """
    correlation = correlation.clone()
    correlation[:, :2] = 1.0
    below = correlation < threshold
    shell = torch.where(below.any(-1), below.int().argmax(-1), correlation.shape[1] - 1)
    rows = torch.arange(len(correlation), device=correlation.device)
    high, low = correlation[rows, shell - 1], correlation[rows, shell]
    share = ((high - threshold) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
    share = torch.where(below.any(-1), share, torch.ones_like(share))
    start, end = frequency_per_A[shell - 1], frequency_per_A[shell]
    return start + share * (end - start)


def _whitened(half1: Volume, half2: Volume) -> tuple[list[Float[Tensor, "n n n"]], float]:
    """Both maps divided by their mean amplitude per shell, and the finest frequency that holds anything."""
    n = half1.box
    transforms = [torch.fft.rfftn(h.values.float()) for h in (half1, half2)]
    power = sum(shell_mean(t.abs().double().square(), n=n, ndim=3) for t in transforms)
    assert isinstance(power, Tensor)
    amplitude = power.sqrt()
    floor = _FLOOR * float(amplitude.max())
    last = int(torch.nonzero(amplitude > floor).max())
    gain = spread_shells(1.0 / amplitude.clamp_min(floor), n=n, ndim=3).float()
    whitened = [torch.fft.irfftn(t * gain, s=(n,) * 3) for t in transforms]
    return whitened, last / (n * half1.pixel_size_A)


def _grid(inside: Tensor, step: int) -> tuple[Int[Tensor, "c 3"], Tensor]:
    """Grid points whose cells touch the mask, as first corners of their windows in the padded maps; and which."""
    n = inside.shape[0]
    m = -(-(n - 1) // step) + 1
    grown = pad(inside.float(), (0, (m - 1) * step + 1 - n) * 3)
    near = max_pool3d(grown[None, None], kernel_size=2 * step - 1, stride=step, padding=step - 1)[0, 0] > 0
    # A window's centre is its index box // 2, and the maps are padded by as much.
    return torch.nonzero(near) * step, near


def _spread(values: Float[Tensor, "c"], valid: Tensor, step: int, n: int) -> Float[Tensor, "n n n"]:
    """Linear between the grid's points that have a value."""
    coarse = torch.zeros(valid.shape, dtype=values.dtype, device=values.device)
    coarse[valid] = values
    size = [(valid.shape[0] - 1) * step + 1] * 3
    both = torch.stack([coarse, valid.to(values)])[None]
    fine = interpolate(both, size=size, mode="trilinear", align_corners=True)[0, :, :n, :n, :n]
    return fine[0] / fine[1].clamp_min(1e-6)
