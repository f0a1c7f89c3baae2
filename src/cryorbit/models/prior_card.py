"""What stands beside a prior's weights: its kind, the version of its layout, its sizes and units."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from cryorbit.errors import BadFile

VERSION = 1
ShapeT = TypeVar("ShapeT")
NetworkT = TypeVar("NetworkT", bound=nn.Module)
PriorT = TypeVar("PriorT", bound="CardedPrior[Any, Any]")


class CardedPrior(Generic[ShapeT, NetworkT]):
    """A prior that is its network's tensors and a card, which holds all else that it takes to make it again."""

    KIND: ClassVar[str]
    SHAPE: ClassVar[type[Any]]
    """Dataclass of sizes and units; what stands in the card."""

    shape: ShapeT
    network: NetworkT

    def __init__(self, shape: ShapeT, *, generator: torch.Generator | None = None) -> None:
        raise NotImplementedError

    def card(self) -> dict[str, Any]:
        """All that `from_state` needs beside the tensors, JSON-able."""
        sizes = {name: getattr(self.shape, name) for name in _names(self.SHAPE)}
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in sizes.items()}
        return {"kind": self.KIND, "version": VERSION, **plain}

    def tensors(self) -> dict[str, Tensor]:
        """The network's weights by name."""
        return dict(self.network.state_dict())

    @classmethod
    def from_state(cls: type[PriorT], tensors: dict[str, Tensor], card: dict[str, Any]) -> PriorT:
        """The prior of `tensors` and `card`, ready to sample with.

        Raises
        ------
        BadFile
            If they are of another kind of prior, or do not belong together.
        """
        kind, version = card.get("kind"), card.get("version")
        if kind != cls.KIND or version != VERSION:
            raise BadFile(
                f"A prior of kind {kind!r}, version {version}, where one of {cls.KIND}, version {VERSION}, was wanted. "
                "Give one of that kind; another version's is to be trained anew, or read by that version of the program."
            )
        try:
            sizes = {name: card[name] for name in _names(cls.SHAPE)}
            sizes = {name: tuple(v) if isinstance(v, list) else v for name, v in sizes.items()}
            prior = cls(cls.SHAPE(**sizes), generator=torch.Generator())
            prior.network.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BadFile(
                f"This prior's card does not fit its weights ({error}). Train or download it anew."
            ) from error
        prior.network.requires_grad_(False).eval()
        return prior


def _names(shape: type[Any]) -> list[str]:
    return [f.name for f in fields(shape)]
