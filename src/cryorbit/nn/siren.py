"""Networks of sine layers: smooth functions of a few coordinates (Sitzmann et al. 2020, SIREN)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput

Precision = Literal["full", "bfloat16"]


def sine_layer(
    x: Float[Tensor, "*batch i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, "o"],
    *,
    omega: float,
) -> Float[Tensor, "*batch o"]:
    """sin(omega (W x + b)). Omega goes into the weights, which are few, and not over the values, which are many."""
    return torch.sin(nn.functional.linear(x, omega * weight, omega * bias))


class Siren(nn.Module):
    """Coordinates -> `width` sines -> `hidden` layers of `width` sines -> a linear layer.

    Weights of the first layer are drawn from U(-1/i, 1/i) for i inputs, later ones from +-sqrt(6/width)/omega, so that
    omega (W x + b) has the spread of a standard normal in every layer; biases from +-1/sqrt(inputs of the layer).

    Parameters
    ----------
    omega
        Frequency of every sine: coordinates within [-1, 1] make up to omega / (2 pi) turns in the first layer.
    precision
        "bfloat16": hidden layers compute and keep their values so; the first (its angles are large), the last and all
        weights stay as they are.
    generator
        Draws the weights; torch's global state does if None.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        width: int,
        hidden: int,
        omega: float,
        precision: Precision = "full",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(inputs, outputs, width) < 1 or hidden < 0 or omega <= 0:
            raise BadInput(
                f"Siren: wanted sizes of 1 or more, hidden >= 0 and omega > 0, got inputs {inputs}, outputs {outputs}, "
                f"width {width}, hidden {hidden}, omega {omega}."
            )
        self.omega, self.precision = omega, precision
        sizes = [inputs, *[width] * (hidden + 1), outputs]
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, a, b) for a, b in pairwise(sizes))
        for number, layer in enumerate(self.linear()):
            fan = layer.in_features
            bound = 1 / fan if number == 0 else math.sqrt(6 / fan) / omega
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -1 / math.sqrt(fan), 1 / math.sqrt(fan), generator=generator)

    def linear(self) -> list[nn.Linear]:
        """The layers in order."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch o"]:
        """Values at the coordinates."""
        first, *middle, last = self.linear()
        x = sine_layer(x, first.weight, first.bias, omega=self.omega)
        for layer in middle:
            if self.precision == "bfloat16":
                x = x.bfloat16()
            x = sine_layer(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype), omega=self.omega)
        return last(x.to(last.weight.dtype))
