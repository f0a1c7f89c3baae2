"""Norms of regular features (b, g, c, h, w) with statistics shared over the group, so that they commute with it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEW_FIELDS = 8
"""Below this torch's batch norm is slow where fields are innermost in memory (measured: 4 to 10 times)."""


class FieldBatchNorm(nn.Module):
    """Batch normalisation with one mean, variance, scale and offset per field: shared over the group.

    `torch.nn.BatchNorm1d` over (b x h x w x g, c), a view where fields are innermost in memory. Few fields are done
    with the moments of the plain channels, which are then put together.
    """

    def __init__(self, fields: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(fields))
        self.bias = nn.Parameter(torch.zeros(fields))
        self.register_buffer("running_mean", torch.zeros(fields))
        self.register_buffer("running_var", torch.ones(fields))

    running_mean: Tensor
    running_var: Tensor

    def forward(self, features: Float[Tensor, "b g c h w"]) -> Float[Tensor, "b g c h w"]:
        """Statistics over batch, group and pixels; running ones in evaluation."""
        return self.of_channels(features.flatten(1, 2)).unflatten(1, features.shape[1:3])

    def of_elements(self, x: Float[Tensor, "b g c"]) -> Float[Tensor, "b g c"]:
        """The same on features without pixels, (b, g, c)."""
        moments, scale = (self.running_mean, self.running_var), (self.weight, self.bias)
        rows = x.flatten(0, 1)
        return F.batch_norm(rows, *moments, *scale, self.training, self.momentum, self.eps).view_as(x)

    def of_channels(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The same on channels, group outermost."""
        c = len(self.weight)
        g = x.shape[1] // c
        if not self.training:
            mean, var, weight, bias = (
                t.repeat(g) for t in (self.running_mean, self.running_var, self.weight, self.bias)
            )
            return F.batch_norm(x, mean, var, weight, bias, training=False, eps=self.eps)
        norm = _RowsBatchNorm if c >= FEW_FIELDS else _SharedBatchNorm
        y = norm.apply(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps
        )
        assert isinstance(y, Tensor)
        return y


class _RowsBatchNorm(torch.autograd.Function):
    """torch's batch norm of (b h w g, c); views are taken in here, to spare the bookkeeping of each."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        b, channels, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, len(weight))
        y, mean, scale = torch.native_batch_norm(
            rows, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.eps, ctx.shape = eps, (b, h, w, channels)
        ctx.save_for_backward(rows, weight, mean, scale)
        return y.view(ctx.shape).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight, mean, scale = ctx.saved_tensors
        dy = grads[0].permute(0, 2, 3, 1).reshape(rows.shape)
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(
            dy, rows, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        return dx.view(ctx.shape).permute(0, 3, 1, 2), dw, db, None, None, None, None


class _SharedBatchNorm(torch.autograd.Function):
    """(b, g x c, h, w) normalised per field; the running statistics move along."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        c, channels = len(weight), x.shape[1]
        g, count = channels // c, x.numel() // c
        if x.dtype == weight.dtype:
            means, variances = torch.batch_norm_update_stats(x, None, None, 0.0)
        else:  # moments are found in the dtype of the running ones
            start = weight.new_zeros(2, channels)
            means, variances = torch.batch_norm_update_stats(x, start[0], start[1], 1.0)
            means, variances = means.to(weight.dtype), variances.to(weight.dtype)
        shared = _averaging(g, c, weight.dtype, weight.device)
        mean = torch.mv(shared, means)
        between = means.sub_(mean)
        var = torch.mv(shared, variances.addcmul_(between, between))
        running_mean.lerp_(mean[:c], momentum)
        running_var.lerp_(var[:c] * (count / max(count - 1, 1)), momentum)
        repeated = weight.repeat(g)
        ctx.eps, ctx.fields = eps, c
        ctx.save_for_backward(x, mean, var, repeated, shared)
        return F.batch_norm(x, mean, var, repeated, bias.repeat(g), training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, mean, var, repeated, shared = ctx.saved_tensors
        dy, c = grads[0].contiguous(memory_format=torch.channels_last), ctx.fields
        # With given moments torch's backward returns sum dy xhat and sum dy of each channel, in one pass.
        _, dw, db = torch.ops.aten.native_batch_norm_backward(
            dy, x, repeated, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack((dw, db)) @ shared  # means over the group
        # dx = a (dy - mean dy - xhat mean(dy xhat)) with a = weight / sqrt(var + eps): a norm of x, plus a dy
        a = (var + ctx.eps).rsqrt_().mul_(repeated)
        of_x, offset = (sums * (a * (-len(a) / x.numel()))).unbind()
        dx = F.batch_norm(x, mean, var, of_x, offset, training=False, eps=ctx.eps)
        if dx.dtype == a.dtype:
            dx.addcmul_(dy, a[:, None, None])
        else:  # addcmul is slow where types differ
            zero = torch.zeros_like(mean)
            dx += F.batch_norm(dy, zero, zero + 1, a, zero, training=False, eps=0.0)
        of_weight, of_bias = (sums[:, :c] * (len(a) // c)).unbind()
        return dx, of_weight, of_bias, None, None, None, None


@lru_cache
def _averaging(g: int, c: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "gc gc"]:
    """Matrix from values of plain channels to their mean over the group, given back to every channel.

    Small operations are what this norm costs beyond torch's own; one product stands for a sum and a repetition.
    """
    with torch.inference_mode(False):  # it is kept, and what comes of inference cannot be used in training
        return torch.eye(c, dtype=dtype, device=device).repeat(g, g) / g


class FieldGroupNorm(nn.Module):
    """Normalisation of each field of each image over group and pixels: the same in training and evaluation."""

    def __init__(self, fields: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(fields))
        self.bias = nn.Parameter(torch.zeros(fields))

    def forward(self, features: Float[Tensor, "b g c h w"]) -> Float[Tensor, "b g c h w"]:
        """Statistics over group and pixels, the variance about the mean found first."""
        return self.of_channels(features.flatten(1, 2)).unflatten(1, features.shape[1:3])

    def of_elements(self, x: Float[Tensor, "b g c"]) -> Float[Tensor, "b g c"]:
        """The same on features without pixels, (b, g, c)."""
        return self.forward(x[..., None, None])[..., 0, 0]

    def of_channels(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The same on channels, group outermost."""
        y = _SharedGroupNorm.apply(x, self.weight, self.bias, self.eps)
        assert isinstance(y, Tensor)
        return y


class _SharedGroupNorm(torch.autograd.Function):
    """(b, g x c, h, w) normalised per image and field, in the precision of the weights."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        b, channels, h, w = x.shape
        g = channels // len(weight)
        rows = x.permute(0, 2, 3, 1).reshape(b, h * w, channels).to(weight.dtype)
        shared = _averaging(g, len(weight), weight.dtype, weight.device)
        centred = rows - (rows.mean(1) @ shared)[:, None]
        inverse = (centred.square().mean(1) @ shared).add_(eps).rsqrt_()
        repeated = weight.repeat(g)
        ctx.group, ctx.dtype = g, x.dtype
        ctx.save_for_backward(centred, inverse, repeated, shared)
        y = torch.addcmul(bias.repeat(g), centred, (inverse * repeated)[:, None])
        return y.to(x.dtype).view(b, h, w, channels).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        centred, inverse, repeated, shared = ctx.saved_tensors
        dy = grads[0].permute(0, 2, 3, 1).reshape(centred.shape).to(centred.dtype)
        plain, along = dy.mean(1), (dy * centred).mean(1)
        # dx = a (dy - mean dy - xhat mean(dy xhat)), xhat = centred x inverse, a = weight x inverse
        a = inverse * repeated
        offset, of_centred = (plain @ shared).mul_(a).neg_(), (along @ shared).mul_(a * inverse**2).neg_()
        dx = torch.addcmul(offset[:, None], centred, of_centred[:, None]).addcmul_(dy, a[:, None])
        sums = torch.stack(((along * inverse).sum(0), plain.sum(0))) * dy.shape[1]
        of_weight, of_bias = sums.view(2, ctx.group, -1).sum(1)
        b, channels, h, w = grads[0].shape
        return dx.to(ctx.dtype).view(b, h, w, channels).permute(0, 3, 1, 2), of_weight, of_bias, None
