"""Norms of regular features (b, g, c, h, w) with statistics shared over the group, so that they commute with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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
        c = len(weight)
        g, count = x.shape[1] // c, x.numel() // c
        if x.dtype == weight.dtype:
            means, variances = torch.batch_norm_update_stats(x, None, None, 0.0)
        else:  # moments are found in the dtype of the running ones
            start = weight.new_zeros(2, x.shape[1])
            means, variances = torch.batch_norm_update_stats(x, start[0], start[1], 1.0)
            means, variances = means.to(weight.dtype), variances.to(weight.dtype)
        between, mean = torch.var_mean(means.view(g, c), 0, correction=0)
        var = between.add_(variances.view(g, c).mean(0))
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / max(count - 1, 1)), momentum)
        full = torch.stack([mean, var, weight, bias]).repeat(1, g)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, full)
        return F.batch_norm(x, *full.unbind(), training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, full = ctx.saved_tensors
        c, dy = len(weight), grads[0].contiguous(memory_format=torch.channels_last)
        g = x.shape[1] // c
        mean, var, repeated, _ = full.unbind()
        # With given moments torch's backward returns sum dy xhat and sum dy of each channel, in one pass.
        _, dw, db = torch.ops.aten.native_batch_norm_backward(
            dy, x, repeated, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([dw, db]).view(2, g, c).sum(1)
        # dx = a (dy - mean dy - xhat mean(dy xhat)) with a = weight / sqrt(var + eps): a norm of x, plus a dy
        a = (var[:c] + ctx.eps).rsqrt_().mul_(weight)
        scaled = torch.cat([sums * (a * (-c / x.numel())), a[None]]).repeat(1, g)
        of_x, offset, of_dy = scaled.unbind()
        dx = F.batch_norm(x, mean, var, of_x, offset, training=False, eps=ctx.eps)
        if dx.dtype == scaled.dtype:
            dx.addcmul_(dy, of_dy[:, None, None])
        else:  # addcmul is slow where types differ
            zero = torch.zeros_like(mean)
            dx += F.batch_norm(dy, zero, zero + 1, of_dy, zero, training=False, eps=0.0)
        return dx, sums[0], sums[1], None, None, None, None


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

    def of_channels(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The same on channels, group outermost."""
        b, channels, h, w = x.shape
        g = channels // len(self.weight)
        rows = x.permute(0, 2, 3, 1).reshape(b, h * w, channels).to(self.weight.dtype)
        centred = rows - _per_channel(rows.mean(1), g)
        variance = _per_channel(centred.square().mean(1), g)
        scale = (variance + self.eps).rsqrt() * self.weight.repeat(g)
        out = torch.addcmul(self.bias.repeat(g), centred, scale)
        return out.to(x.dtype).view(b, h, w, channels).permute(0, 3, 1, 2)


def _per_channel(moments: Tensor, g: int) -> Tensor:
    """Moments (b, g x c) averaged over the group and given back to every channel, (b, 1, g x c)."""
    return moments.unflatten(1, (g, -1)).mean(1).repeat(1, g)[:, None]
