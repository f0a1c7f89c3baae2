"""What the equivariance table tries: every layer with random weights and inputs, every encoder briefly trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.benchmarks.equivariance import D4_NAMES, Check
from cryorbit.geometry import harmonics
from cryorbit.geometry.groups import (
    PlaneGroup,
    act_on_images,
    act_on_rotation,
    act_on_shift,
    inverse_table,
    multiplication_table,
)
from cryorbit.geometry.rotations import frobenius_squared, random_rotations
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction, make_encoder
from cryorbit.nn.filter_bank import FilterBank
from cryorbit.nn.group_conv import GroupConv, LiftConv, avg_pool_fields, max_pool_fields
from cryorbit.nn.group_linear import EquivariantLinear, Kind, intertwiners, representation
from cryorbit.nn.group_norm import FieldBatchNorm, FieldGroupNorm
from cryorbit.nn.polar import PolarTrunk, turn_circle
from cryorbit.nn.so3_conv import RotationActivation, RotationConv, SphereConv

ORDERS: dict[PlaneGroup, int] = {"C4": 4, "D4": 8}
KINDS: tuple[Kind, ...] = ("trivial", "regular", "plane", "pose")
N_TURNS, N_RANDOM, L_MAX = 48, 8, 5
TRAINED = {
    "standard": {"name": "standard", "box": 32},
    "c4": {"name": "c4", "box": 32},
    "d4": {"name": "d4", "box": 32},
    "d4, 33 px, group norm": {"name": "d4", "box": 33, "norm": "group"},
    "d4-regular": {"name": "d4-regular", "box": 32, "hypotheses": 2},
    "i2s": {"name": "i2s", "box": 32},
    "slice, 33 px": {"name": "slice", "box": 33},
}
"""Encoders of the table, by their options; a quarter of full width."""


def _relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm().clamp_min(1e-30)).detach())


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved_features(features: Float[Tensor, "b g c h w"], element: int, group: PlaneGroup) -> Tensor:
    """(g f)(h, x) = f(g^-1 h, g^-1 x)."""
    source = multiplication_table(group)[inverse_table(group)[element]]
    return act_on_images(features[:, source], element)


def layer_checks() -> Iterator[Check]:
    """Layers of all kinds: on the pixel grid, on circles, on the sphere and the rotations."""
    for group in ORDERS:
        yield from _plane_checks(group)
    bank = FilterBank(32)
    yield Check(
        "filter bank", D4_NAMES, lambda dtype: _map_errors(bank, _random(4, 32, 32), "D4", dtype, bare=True)
    )
    yield from _circle_checks()
    yield from _sphere_checks()


def _plane_checks(group: PlaneGroup) -> Iterator[Check]:
    order, names = ORDERS[group], D4_NAMES[: ORDERS[group]]
    even, odd = _random(4, order, 4, 8, 8), _random(4, order, 4, 9, 9)
    images, many = _random(4, 3, 8, 8), _random(4, order, 12, 8, 8)
    layers: list[tuple[str, Callable[[Tensor], Tensor], Tensor]] = [
        ("lifting convolution 3x3", LiftConv(3, 4, group=group), images),
        ("group convolution 3x3", GroupConv(4, 4, group=group), even),
        ("group convolution 3x3, odd map", GroupConv(4, 4, group=group), odd),
        ("group convolution 2x2, no padding", GroupConv(4, 4, 2, group=group, padding=0), even),
        ("batch norm, 4 fields", FieldBatchNorm(4), even),
        ("batch norm, 12 fields", FieldBatchNorm(12), many),
        ("group norm", FieldGroupNorm(4), even),
        ("max pooling", max_pool_fields, even),
        ("max pooling, odd map", max_pool_fields, odd),
        ("mean pooling", avg_pool_fields, even),
        ("mean pooling, odd map", avg_pool_fields, odd),
    ]
    for name, layer, x in layers:
        yield Check(f"{group} {name}", names, lambda dtype, f=layer, v=x: _map_errors(f, v, group, dtype))
    yield Check(f"{group} linear maps, all kinds", names, lambda dtype: _linear_errors(group, dtype))


def _in_dtype(f: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return copy.deepcopy(f).to(dtype) if isinstance(f, nn.Module) else f


def _map_errors(
    f: Callable[[Tensor], Tensor], x: Tensor, group: PlaneGroup, dtype: torch.dtype, *, bare: bool = False
) -> list[float]:
    """Features or images in, features out; `bare`: images out."""
    f, x = _in_dtype(f, dtype), x.to(dtype)
    errors = []
    for g in range(ORDERS[group]):
        inside = moved_features(x, g, group) if x.ndim == 5 else act_on_images(x, g)
        outside = act_on_images(f(x), g) if bare else moved_features(f(x), g, group)
        errors.append(_relative(f(inside), outside))
    return errors


def _linear_errors(group: PlaneGroup, dtype: torch.dtype) -> list[float]:
    errors = [0.0] * ORDERS[group]
    for a in KINDS:
        for b in KINDS:
            if len(intertwiners(a, b, group)) == 0:
                continue
            layer = EquivariantLinear(a, 3, b, 4, group=group).to(dtype)
            into, out = (representation(k, group, dtype=dtype) for k in (a, b))
            x = _random(8, into.shape[1], 3).to(dtype)
            for g in range(ORDERS[group]):
                errors[g] = max(errors[g], _relative(layer(into[g] @ x), out[g] @ layer(x)))
    return errors


def _circle_checks() -> Iterator[Check]:
    trunk, x = PolarTrunk(10, 16), _random(4, 10, N_TURNS)
    names = tuple(f"{360 * t // N_TURNS}" for t in range(0, N_TURNS, N_TURNS // 8))

    def errors(dtype: torch.dtype) -> list[float]:
        f, v = _in_dtype(trunk, dtype), x.to(dtype)
        every = [_relative(f(turn_circle(v, t)), turn_circle(f(v), t)) for t in range(N_TURNS)]
        step = N_TURNS // 8
        return [max(every[i : i + step]) for i in range(0, N_TURNS, step)]

    yield Check(f"circles: trunk, all {N_TURNS} turns from ...", names, errors)


def _turn_columns(x: Tensor, rotation: Tensor, *, sphere: bool) -> Tensor:
    """Coefficients of the turned function: rows of every degree by the Wigner matrix."""
    blocks = harmonics.real_wigner_matrices(L_MAX, rotation)
    parts = []
    for d, block in enumerate(blocks):
        own = block.to(x)
        if sphere:
            parts.append(x[..., d**2 : (d + 1) ** 2] @ own.mT)
        else:
            part = x[..., harmonics.rotation_blocks(L_MAX)[d]].unflatten(-1, (2 * d + 1, 2 * d + 1))
            parts.append((own @ part).flatten(-2))
    return torch.cat(parts, -1)


def _sphere_checks() -> Iterator[Check]:
    rotations = random_rotations(N_RANDOM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names = tuple(f"random {i}" for i in range(1, N_RANDOM + 1))
    on_sphere, on_rotations = (
        _random(2, 3, harmonics.n_sphere(L_MAX)),
        _random(2, 3, harmonics.n_rotations(L_MAX)),
    )
    layers: list[tuple[str, nn.Module, bool]] = [
        ("sphere convolution", SphereConv(3, 4, l_max=L_MAX), True),
        ("rotation convolution", RotationConv(3, 4, l_max=L_MAX), False),
        ("rotation ReLU, grid 6", RotationActivation(l_max=L_MAX, resolution=6), False),
        ("rotation ReLU, grid 12", RotationActivation(l_max=L_MAX, resolution=12), False),
        ("rotation ReLU, grid 18", RotationActivation(l_max=L_MAX, resolution=18), False),
    ]
    for name, layer, sphere in layers:

        def errors(dtype: torch.dtype, layer: nn.Module = layer, sphere: bool = sphere) -> list[float]:
            f, x = _in_dtype(layer, dtype), (on_sphere if sphere else on_rotations).to(dtype)
            return [
                _relative(f(_turn_columns(x, r, sphere=sphere)), _turn_columns(f(x), r, sphere=False))
                for r in rotations
            ]

        yield Check(f"{name}, degree {L_MAX}", names, errors, exact="ReLU" not in name)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images with the poses that they were made at."""

    images: Float[Tensor, "b h h"]
    rotation: Float[Tensor, "b 3 3"]
    shift_px: Float[Tensor, "b 2"]


def pictures(n: int, box: int, *, seed: int, noise: float = 0.1) -> Pictures:
    """Noisy images of one particle of twelve unequal balls, integrals and all in closed form."""
    gen, particle = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(5)
    centres = torch.randn(12, 3, generator=particle) * box / 8
    weights = torch.rand(12, generator=particle) + 0.3
    rotation = random_rotations(n, generator=gen)
    shift_px = torch.randn(n, 2, generator=gen) * box / 32
    at = (centres @ rotation.mT)[..., :2] + shift_px[:, None]
    axis, width = torch.arange(box) - box // 2, box / 16
    x, y = (torch.exp(-0.5 * ((axis - at[..., i, None]) / width) ** 2) for i in (0, 1))
    images = torch.einsum("i,biy,bix->byx", weights, y, x)
    return Pictures(images + noise * torch.randn(images.shape, generator=gen), rotation, shift_px)


def winner_loss(prediction: PosePrediction, truth: Pictures) -> Tensor:
    """Winner takes most: the best hypothesis learns the pose, its logit that it is the best, all a little."""
    error = frobenius_squared(prediction.rotation, truth.rotation[:, None])
    best = error.min(-1)
    named = nn.functional.cross_entropy(prediction.logits, best.indices)
    shifts = (prediction.shift_px - truth.shift_px[:, None]).square().mean()
    return best.values.mean() + 0.05 * error.mean() + named + 0.1 * shifts


def train_briefly(encoder: PoseEncoder, *, steps: int, batch: int = 16) -> PoseEncoder:
    """Some Adam steps on fresh pictures; weights that no initialisation has made special."""
    optimiser = torch.optim.Adam(encoder.parameters(), 1e-3)
    for step in range(steps):
        truth = pictures(batch, encoder.box, seed=step)
        loss = winner_loss(encoder(truth.images), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return encoder.eval()


def trained_encoders(names: Iterable[str] = tuple(TRAINED), *, steps: int = 120) -> dict[str, PoseEncoder]:
    """Encoders of the table, after a few seconds of training each.

    Until then one or two images of sixteen may still have a vector near 0, or two that are nearly parallel, and making
    a rotation of them enlarges round-off: up to 4e-5 in float32 was measured after 50 to 90 steps of d4.
    """
    out = {}
    for name in names:
        options: dict[str, Any] = TRAINED[name]
        encoder = make_encoder(width=0.25, generator=torch.Generator().manual_seed(1), **options)
        out[name] = train_briefly(encoder, steps=steps)
    return out


def encoder_checks(encoders: Mapping[str, PoseEncoder]) -> Iterator[Check]:
    """decode(E(g I)) = g decode(E(I)) of whole networks, rotations, shifts and logits together."""
    for name, encoder in encoders.items():
        kind = encoder.settings.name
        names = D4_NAMES[:4] if kind == "c4" else D4_NAMES

        def errors(dtype: torch.dtype, encoder: PoseEncoder = encoder, n: int = len(names)) -> list[float]:
            own = copy.deepcopy(encoder).to(dtype)
            images = pictures(16, encoder.box, seed=99).images.to(dtype)
            with torch.no_grad():
                still = own(images)
                return [
                    prediction_error(own(act_on_images(images, g)), still, g, box=encoder.box)
                    for g in range(n)
                ]

        exact = kind in ("c4", "d4", "d4-regular", "slice")
        yield Check(f"encoder {name}", names, errors, exact=exact, must_fail=kind == "standard")


def prediction_error(got: PosePrediction, still: PosePrediction, element: int, *, box: int) -> float:
    """Largest relative error, over the batch, of rotations, shifts and logits against the moved prediction.

    Hypotheses are matched by their rotations; where images share a grid that is the matching of its cells. Cells that
    the element carries off the grid have no match, and the error is then infinite.
    """
    rotation = act_on_rotation(still.rotation, element)
    shift_px = act_on_shift(still.shift_px, element, box=box)
    logits = still.logits
    shared = logits.shape[1] > 1 and torch.equal(got.rotation[:1].expand_as(got.rotation), still.rotation)
    seen = slice(1) if shared else slice(None)
    at = torch.einsum("bkij,blij->bkl", got.rotation[seen], rotation[seen]).argmax(-1).expand(len(logits), -1)
    rotation = rotation.gather(1, at[..., None, None].expand(*at.shape, 3, 3))
    shift_px = shift_px.gather(1, at[..., None].expand(*at.shape, 2))
    logits = logits.gather(1, at)
    if shared and float((got.rotation[0] - rotation[0]).abs().max()) > 1e-3:
        return float("inf")
    log_p = [torch.log_softmax(v, -1) for v in (got.logits, logits)]
    return max(
        _relative(got.rotation, rotation),
        _relative(got.shift_px, shift_px) if float(shift_px.norm()) > 0 else 0.0,
        _relative(log_p[0], log_p[1]) if logits.shape[1] > 1 else 0.0,
    )
