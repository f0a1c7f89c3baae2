"""Convolutions that commute with the quarter turns (C4) and reflections (D4) of the pixel grid, exactly.

A regular feature is a function f(h, x) of group element and pixel, an array (b, g, c, h, w) of c fields; moving the
image by g moves it to (g f)(h, x) = f(g^-1 h, g^-1 x). Elements are numbered as in `geometry.groups`.

    lift     f(h, x)  = sum over d of psi(h^-1 d) I(x + d)
    group    f'(h, x) = sum over h', d of psi(h^-1 h', h^-1 d) f(h', x + d)

(Cohen & Welling 2016, "Group equivariant convolutional networks".) Both are one `conv2d` with a kernel whose rows
are copies of psi, permuted by a table. Arrays are kept with the fields innermost in memory ("channels last"): there
the copies are of whole rows, and statistics shared over the group are those of a plain channel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.geometry.groups import PlaneGroup, act_on_images, inverse_table, multiplication_table


def tap_index(group: PlaneGroup, size: int, *, lift: bool) -> Int[Tensor, "g n"]:
    """Which tap of psi each tap of the expanded kernel copies, per output element; taps in the order (y, x, h')."""
    table, inverse = multiplication_table(group), inverse_table(group)
    n_in = 1 if lift else len(table)
    base = torch.arange(size * size * n_in).reshape(size, size, n_in).permute(2, 0, 1)
    rows = []
    for h in range(len(table)):
        moved = act_on_images(base, h)
        rows.append((moved if lift else moved[table[inverse[h]]]).permute(1, 2, 0).flatten())
    return torch.stack(rows)


class _CopyRows(torch.autograd.Function):
    """Rows of psi copied to a plain kernel, each g times: so the gradient is g rows gathered and added, not scattered.

    Reshaping is done in here too, to spare the bookkeeping of each step.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, weight: Tensor, index: Tensor, inverse: Tensor, copies: int
    ) -> Tensor:
        fields_out, size, _, n_in, fields_in = weight.shape
        ctx.copies, ctx.shape = copies, weight.shape
        ctx.save_for_backward(inverse)
        rows = weight.reshape(-1, fields_in).index_select(0, index)
        return rows.view(copies * fields_out, size, size, n_in * fields_in).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inverse,) = ctx.saved_tensors
        rows = grads[0].permute(0, 2, 3, 1).reshape(-1, ctx.shape[-1])
        return rows.index_select(0, inverse).view(ctx.copies, *ctx.shape).sum(0), None, None, None


class SharedKernel(nn.Module):
    """The weights psi of a lifting or group convolution, and their expansion to a plain kernel.

    In evaluation without gradients the expansion is kept until the weights change. (Changes made through
    `weight.data` in place are not seen; those of optimisers, `copy_`, `load_state_dict` and `to` are.)
    """

    def __init__(self, fields_in: int, fields_out: int, size: int, *, group: PlaneGroup, lift: bool) -> None:
        super().__init__()
        index = tap_index(group, size, lift=lift)
        g, n = index.shape
        self.order, self.size = g, size
        self.weight = nn.Parameter(torch.empty(fields_out, size, size, 1 if lift else g, fields_in))
        bound = 1 / math.sqrt(n * fields_in)  # as torch's own convolutions
        nn.init.uniform_(self.weight, -bound, bound)
        first = n * torch.arange(fields_out)[:, None]
        inverse = index.argsort(-1)
        offset = fields_out * n * torch.arange(g)[:, None, None]
        self.register_buffer("_index", (index[:, None] + first).flatten(), persistent=False)
        self.register_buffer("_inverse", (inverse[:, None] + first + offset).flatten(), persistent=False)
        self._kept: tuple[Any, Tensor] | None = None

    _index: Tensor
    _inverse: Tensor

    def expand(self) -> Float[Tensor, "gout gin k k"]:
        """Plain kernel of shape (g x fields_out, g x fields_in, size, size), channels last in memory."""
        kernel = _CopyRows.apply(self.weight, self._index, self._inverse, self.order)
        assert isinstance(kernel, Tensor)
        return kernel

    def forward(self) -> Float[Tensor, "gout gin k k"]:
        """The expansion, from memory where that is safe."""
        weight = self.weight
        if self.training or weight.is_inference() or (torch.is_grad_enabled() and weight.requires_grad):
            return self.expand()
        state = (weight._version, weight.data_ptr(), weight.dtype, weight.device)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, self.expand())
        return self._kept[1]


def _padding(size: int, padding: int | None) -> int:
    if size < 1:
        raise BadInput(f"A convolution kernel of size {size} has no taps; give 1 or more.")
    if padding is None and size % 2 == 0:
        raise BadInput(
            f"A kernel of even size {size} cannot keep the size of the image. Give an odd size, or padding=0."
        )
    return size // 2 if padding is None else padding


class _FieldConv(nn.Module):
    """One convolution with a kernel shared over the group, from channels or from regular fields."""

    lift: bool

    def __init__(
        self,
        n_in: int,
        fields_out: int,
        size: int = 3,
        *,
        group: PlaneGroup,
        padding: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.padding = _padding(size, padding)
        self.kernel = SharedKernel(n_in, fields_out, size, group=group, lift=self.lift)
        self.bias = nn.Parameter(torch.zeros(fields_out)) if bias else None

    def _correlate(self, planes: Tensor) -> Tensor:
        out = convolve(planes, self.kernel, self.bias, padding=self.padding)
        return out.unflatten(1, (self.kernel.order, -1))


class LiftConv(_FieldConv):
    """Images with `n_in` channels to `fields_out` regular fields.

    `padding` (zeros) keeps the size of the image where None; kernels of even size need it given.
    """

    lift = True

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b g f y x"]:
        """Correlate with every element's copy of the kernel."""
        return self._correlate(images)


class GroupConv(_FieldConv):
    """`n_in` regular fields to `fields_out` regular fields. `padding` as for `LiftConv`."""

    lift = False

    def forward(self, features: Float[Tensor, "b g c h w"]) -> Float[Tensor, "b g f y x"]:
        """Correlate over the group and the plane."""
        return self._correlate(features.flatten(1, 2))


def convolve(
    x: Float[Tensor, "b cin h w"], kernel: SharedKernel, bias: Float[Tensor, "f"] | None, *, padding: int
) -> Float[Tensor, "b cout y x"]:
    """Correlate images, or regular fields as channels (group outermost), with every element's copy of the kernel."""
    weight = kernel()
    if x.shape[1] != weight.shape[1]:
        raise BadInput(
            f"This convolution takes {weight.shape[1]} channels (group x fields), got {x.shape[1]}."
        )
    own = None if bias is None else bias.repeat(kernel.order)
    x = x.contiguous(memory_format=torch.channels_last)
    if (
        padding == 0 and x.shape[-2:] == weight.shape[-2:]
    ):  # one position: a matrix product does it, 5 times faster
        rows, columns = (t.permute(0, 2, 3, 1).flatten(1) for t in (x, weight))
        return F.linear(rows, columns, own)[..., None, None]
    return F.conv2d(x, weight, own, padding=padding)


def pooled_size(size: int) -> int:
    """Side of the map after one pooling."""
    return (size + 1) // 2


def max_pool(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c y x"]:
    """Half the size, largest of 2 x 2 pixels for an even side; of 3 x 3 about every other pixel for an odd one.

    Windows lie symmetrically about the centre in both cases, so turns and reflections commute with it. (2 x 2
    windows on an odd side would drop the last row.)
    """
    if _check_square(images) % 2 == 0:
        return F.max_pool2d(images, 2)
    return F.max_pool2d(images, 3, 2, 1)


def avg_pool(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c y x"]:
    """As `max_pool`, with the mean; windows over the edge take the mean of what lies inside."""
    if _check_square(images) % 2 == 0:
        return F.avg_pool2d(images, 2)
    return F.avg_pool2d(images, 3, 2, 1, count_include_pad=False)


def _check_square(images: Tensor) -> int:
    h, w = images.shape[-2:]
    if h != w or h < 2:
        raise BadInput(
            f"Pooling wants square maps of side 2 or more, got {h} x {w}. Crop the images to a square box."
        )
    return h


def max_pool_fields(features: Float[Tensor, "b g c h w"]) -> Float[Tensor, "b g c y x"]:
    """`max_pool` of every field and element."""
    return max_pool(features.flatten(1, 2)).unflatten(1, features.shape[1:3])


def avg_pool_fields(features: Float[Tensor, "b g c h w"]) -> Float[Tensor, "b g c y x"]:
    """`avg_pool` of every field and element."""
    return avg_pool(features.flatten(1, 2)).unflatten(1, features.shape[1:3])
