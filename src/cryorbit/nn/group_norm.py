"""Norms of regular features (b, g, c, h, w) with statistics shared over the group, so that they commute with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FieldBatchNorm(nn.Module):
    """Batch normalisation with one mean, variance, scale and offset per field: shared over the group.

    `torch.nn.BatchNorm2d` over (b, c, g x h, w); done with the moments of plain channels, which are then put
    together, because a plain batch norm of few fields is slow where fields are innermost in memory.
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
        g = features.shape[1]
        x = features.flatten(1, 2)
        if not self.training:
            stats = [t.repeat(g) for t in (self.running_mean, self.running_var, self.weight, self.bias)]
            return F.batch_norm(x, *stats, training=False, eps=self.eps).unflatten(1, (g, -1))
        y, mean, var = _SharedBatchNorm.apply(x, self.weight, self.bias, g, self.eps)  # pyright: ignore[reportGeneralTypeIssues]
        count = x.numel() // len(self.weight)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / max(count - 1, 1)), self.momentum)
        return y.unflatten(1, (g, -1))


class _SharedBatchNorm(torch.autograd.Function):
    """(y, mean, variance) of (b, g x c, h, w), normalised per field; the moments carry no gradient."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, g: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        n = x.shape[1]
        start = weight.new_zeros(2, n)  # given in the dtype of the weights: so the moments are found in it
        means, variances = torch.batch_norm_update_stats(x, start[0], start[1], 1.0)
        means, variances = means.to(weight.dtype).view(g, -1), variances.to(weight.dtype).view(g, -1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        full = [t.repeat(g) for t in (mean, var, weight, bias)]
        return F.batch_norm(x, *full, training=False, eps=eps), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, float], output: Any) -> None:
        x, weight, _, ctx.g, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, var = ctx.saved_tensors
        g, dy = ctx.g, grads[0].contiguous(memory_format=torch.channels_last)
        # With given moments torch's backward returns sum dy xhat and sum dy of each channel, in one pass.
        _, dw, db = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight.repeat(g), mean.repeat(g), var.repeat(g), None, None, False, ctx.eps, [False, True, True]
        )
        dw, db = dw.view(g, -1).sum(0), db.view(g, -1).sum(0)
        # dx = w r (dy - mean dy - xhat mean(dy xhat)), r = 1/sqrt(var + eps): a dy + (e x + f)
        r = (var + ctx.eps).rsqrt()
        count = x.numel() // len(weight)
        a, e = weight * r, -weight * r * r * dw / count
        f = -a * db / count - e * mean
        zero = torch.zeros_like(a).repeat(g)
        one = torch.ones_like(zero)
        dx = F.batch_norm(x, zero, one, e.repeat(g), f.repeat(g), training=False, eps=0.0)
        dx += F.batch_norm(dy, zero, one, a.repeat(g), zero, training=False, eps=0.0)
        return dx, dw, db, None, None


class FieldGroupNorm(nn.Module):
    """Normalisation of each field of each image over group and pixels: the same in training and evaluation."""

    def __init__(self, fields: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(fields))
        self.bias = nn.Parameter(torch.zeros(fields))

    def forward(self, features: Float[Tensor, "b g c h w"]) -> Float[Tensor, "b g c h w"]:
        """Statistics over group and pixels, the variance about the mean found first."""
        b, g, c, h, w = features.shape
        rows = features.permute(0, 3, 4, 1, 2).reshape(b, h * w, g * c).to(self.weight.dtype)
        centred = rows - _per_channel(rows.mean(1), g)
        variance = _per_channel(centred.square().mean(1), g)
        out = centred * ((variance + self.eps).rsqrt() * self.weight.repeat(g)) + self.bias.repeat(g)
        return out.to(features.dtype).view(b, h, w, g, c).permute(0, 3, 4, 1, 2)


def _per_channel(moments: Tensor, g: int) -> Tensor:
    """Moments (b, g x c) averaged over the group and given back to every channel, (b, 1, g x c)."""
    return moments.unflatten(1, (g, -1)).mean(1).repeat(1, g)[:, None]
