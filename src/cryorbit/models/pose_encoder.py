"""From images to poses in one pass: what an encoder predicts, what an encoder is, and how to make one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cryorbit.data.distribution import SO3Distribution
from cryorbit.errors import BadInput

EncoderName = Literal["standard", "c4", "d4", "d4-regular", "i2s", "slice"]


@dataclass(frozen=True, eq=False)
class PosePrediction:
    """k weighted hypotheses for the pose of each of b images: x_lab = rotation @ x_particle + shift.

    Parameters
    ----------
    rotation
        RELION's matrix A of each hypothesis, shape (b, k, 3, 3); may be an expanded view where all images share a
        grid.
    logits
        Unnormalised log probability, shape (b, k).
    shift_px
        Where the particle's centre sits in the image that was given, shape (b, k, 2), x then y, in pixels from
        index box // 2.
    cell_fraction
        Share of SO(3) that one hypothesis stands for; 1 / k where they are no grid.

    Raises
    ------
    BadInput
        If the shapes disagree.
    """

    rotation: Float[Tensor, "... 3 3"]
    logits: Float[Tensor, "..."]
    shift_px: Float[Tensor, "... 2"]
    cell_fraction: float

    def __post_init__(self) -> None:
        r, s, t = tuple(self.rotation.shape), tuple(self.logits.shape), tuple(self.shift_px.shape)
        if len(s) != 2 or r != (*s, 3, 3) or t != (*s, 2):
            raise BadInput(
                "PosePrediction: wanted rotation (b, k, 3, 3), logits (b, k) and shift_px (b, k, 2), got "
                f"{r}, {s} and {t}."
            )

    def __len__(self) -> int:
        return self.logits.shape[0]

    def to(self, device: torch.device | str) -> PosePrediction:
        """The same on a device."""
        return PosePrediction(
            self.rotation.to(device), self.logits.to(device), self.shift_px.to(device), self.cell_fraction
        )

    def distribution(self) -> SO3Distribution:
        """The hypotheses with probabilities that sum to 1."""
        return SO3Distribution(self.rotation, torch.softmax(self.logits, -1), self.cell_fraction)

    def best(self) -> BestPose:
        """The most probable hypothesis of each image."""
        top = self.top(1)
        return BestPose(top.rotation[:, 0], top.shift_px[:, 0])

    def top(self, k: int) -> PosePrediction:
        """The k most probable hypotheses of each image, most probable first; all of them where there are fewer."""
        return self.at(self.logits.topk(min(k, self.logits.shape[1]), -1).indices)

    def at(self, index: Int[Tensor, "b m"]) -> PosePrediction:
        """Some hypotheses of each image, by their places."""
        return PosePrediction(
            self.rotation.gather(1, index[..., None, None].expand(*index.shape, 3, 3)),
            self.logits.gather(1, index),
            self.shift_px.gather(1, index[..., None].expand(*index.shape, 2)),
            self.cell_fraction,
        )


@dataclass(frozen=True, eq=False)
class BestPose:
    """One pose per image; unpacks as (rotation, shift_px)."""

    rotation: Float[Tensor, "b 3 3"]
    shift_px: Float[Tensor, "b 2"]

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.rotation, self.shift_px))


class EncoderSettings(Protocol):
    """Whatever else a kind of encoder needs: `make_encoder(**dataclasses.asdict(settings))` makes it again."""

    @property
    def name(self) -> EncoderName:
        """Which kind of encoder."""
        ...

    @property
    def box(self) -> int:
        """Side of the images in pixels."""
        ...


class PoseEncoder(nn.Module, ABC):
    """Images of side `box` to weighted pose hypotheses. `settings` rebuild it, without its weights."""

    box: int
    settings: EncoderSettings

    @abstractmethod
    def forward(self, images: Float[Tensor, "b h h"]) -> PosePrediction:
        """Hypotheses of each image."""

    def check_box(self, images: Float[Tensor, "b h h"]) -> None:
        """Raise BadInput unless the images have the side this encoder was made for."""
        if images.ndim != 3 or images.shape[-1] != self.box or images.shape[-2] != self.box:
            raise BadInput(
                f"This encoder was made for images (b, {self.box}, {self.box}), got {tuple(images.shape)}. Crop or "
                "resample the images, or make an encoder for their box."
            )


def computing_on(encoder: PoseEncoder, device: torch.device | str) -> PoseEncoder:
    """The encoder moved to `device`, for callers whose tensors are on the CPU.

    Images are moved there on their way in (to a GPU from pinned memory), predictions back on their way out, and the
    gradient of a loss of predictions takes the same way: forward, backward and an optimiser of its parameters compute
    on `device`, and nobody who calls the encoder needs to know. Make optimisers afterwards.
    """
    where = torch.device(device)
    if where.type != "cpu":
        encoder.to(where)
        encoder.register_forward_pre_hook(partial(_fetch, where), with_kwargs=True)
        encoder.register_forward_hook(_bring_back)
    return encoder


def _fetch(
    where: torch.device, _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device == where:
            return value
        if where.type == "cuda" and value.device.type == "cpu":
            return value.pin_memory().to(where, non_blocking=True)
        return value.to(where)

    return tuple(moved(v) for v in args), {name: moved(v) for name, v in options.items()}


def _bring_back(_: nn.Module, args: tuple[Any, ...], prediction: PosePrediction) -> PosePrediction:
    del args
    return prediction.to("cpu")


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Weights made inside are drawn from `generator`, and torch's global state is afterwards as it was before.

    Without a generator the global state is used, and moves on.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        yield


def make_encoder(
    name: EncoderName | str,
    *,
    box: int,
    width: float = 1.0,
    hypotheses: int = 1,
    generator: torch.Generator | None = None,
    **options: Any,
) -> PoseEncoder:
    """An encoder with fresh weights.

    Parameters
    ----------
    name
        "standard" (cryoAI's VGG), "c4" and "d4" (one pose, equivariant), "d4-regular" (8 x hypotheses),
        "i2s" (lift to the half sphere), "slice" (lift to the equator).
    box
        Side of the images in pixels.
    width
        Channels relative to the network of full size.
    hypotheses
        Poses per image ("standard"), per image and group element ("d4-regular").
    generator
        Draws the weights; torch's global state does if None.
    options
        Fields of the encoder's own settings.

    Raises
    ------
    BadInput
        If the name is unknown or the encoder cannot be made so.
    """
    if name not in get_args(EncoderName):
        raise BadInput(f"Encoder {name!r} is not one of {', '.join(get_args(EncoderName))}.")
    with seeded(generator):
        if name in ("i2s", "slice"):
            from cryorbit.models.sphere_encoder import make_sphere_encoder

            return make_sphere_encoder(name, box=box, width=width, hypotheses=hypotheses, **options)
        from cryorbit.models.plane_encoder import make_plane_encoder

        return make_plane_encoder(name, box=box, width=width, hypotheses=hypotheses, **options)
