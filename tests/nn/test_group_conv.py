"""Layers on regular features: moving what goes in moves what comes out, for every element, to round-off."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from cryorbit.errors import BadInput
from cryorbit.geometry.groups import act_on_images, inverse_table, multiplication_table
from cryorbit.nn.filter_bank import DEVIATION, MEAN, FilterBank
from cryorbit.nn.group_conv import (
    GroupConv,
    LiftConv,
    SharedKernel,
    avg_pool,
    avg_pool_fields,
    max_pool,
    max_pool_fields,
    pooled_size,
)
from cryorbit.nn.group_linear import EquivariantLinear, intertwiners, representation
from cryorbit.nn.group_norm import FieldBatchNorm, FieldGroupNorm
from laws import ROUND_OFF

GROUPS = {"C4": 4, "D4": 8}
DTYPES = [torch.float64, torch.float32]
KINDS = ["trivial", "regular", "plane", "pose"]


def moved(features, element, group):
    """(g f)(h, x) = f(g^-1 h, g^-1 x)."""
    table, inverse = multiplication_table(group), inverse_table(group)
    return act_on_images(features[:, table[inverse[element]]], element)


def relative(a, b):
    return float(((a - b).norm() / b.norm()).detach())


def features(group, fields=3, box=8, *, dtype=torch.float64):
    return torch.randn(4, GROUPS[group], fields, box, box, generator=torch.Generator().manual_seed(0)).to(
        dtype
    )


def drawn(module, seed=1):
    """All parameters at random, so that no scale is 1 and no offset 0."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=gen))
    return module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("box", [8, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("group", GROUPS)
def test_lifting_commutes(group, size, box, dtype):
    """Moving the images moves the lifted features, for kernels of odd and even size."""
    layer = drawn(LiftConv(3, 4, size, group=group, padding=size // 2)).to(dtype)
    images = torch.randn(2, 3, box, box, generator=torch.Generator().manual_seed(0)).to(dtype)
    for g in range(GROUPS[group]):
        assert relative(layer(act_on_images(images, g)), moved(layer(images), g, group)) <= ROUND_OFF[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("box", [8, 9])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("group", GROUPS)
def test_group_convolution_commutes(group, size, box, dtype):
    """Moving regular features moves what a group convolution makes of them."""
    layer = drawn(GroupConv(3, 4, size, group=group, padding=size // 2)).to(dtype)
    x = features(group, box=box, dtype=dtype)
    for g in range(GROUPS[group]):
        assert relative(layer(moved(x, g, group)), moved(layer(x), g, group)) <= ROUND_OFF[dtype]


def test_group_convolution_is_its_sum():
    """The table-expanded kernel gives sum over h', d of psi(h^-1 h', h^-1 d) f(h', x + d), term by term."""
    layer, x = drawn(GroupConv(3, 2, group="D4", bias=False)).double(), features("D4", box=5)
    table, inverse = multiplication_table(), inverse_table()
    psi = layer.kernel.weight.permute(3, 0, 4, 1, 2)  # h, out, in, y, x
    out = layer(x)
    for h in range(8):
        own = sum(
            nn.functional.conv2d(x[:, k], act_on_images(psi[table[inverse[h], k]], h), padding=1)
            for k in range(8)
        )
        assert relative(out[:, h], own) <= ROUND_OFF[torch.float64]


@pytest.mark.parametrize("lift", [True, False])
@pytest.mark.parametrize("group", GROUPS)
def test_gradient_of_the_expansion(group, lift):
    """The gathered gradient of the copies is the true one."""
    kernel = SharedKernel(2, 1, 2, group=group, lift=lift).double()

    def expand(weight):
        return torch.func.functional_call(kernel, {"weight": weight}, ())

    assert gradcheck(expand, (kernel.weight,))


def test_kept_expansion_follows_the_weights():
    """In evaluation the kernel is expanded once, and again after the weights changed in any usual way."""
    layer = GroupConv(2, 2, group="D4").eval()
    x = features("D4", 2, dtype=torch.float32)
    with torch.no_grad():
        before = layer(x)
        assert layer.kernel() is layer.kernel()
        layer.kernel.weight.mul_(2)
        assert relative(layer(x), 2 * before) <= ROUND_OFF[torch.float32]
        layer.load_state_dict({k: v / 2 for k, v in layer.state_dict().items()})
        assert torch.equal(layer(x), before)
        assert layer.double()(x.double()).dtype == torch.float64
    layer.float()
    assert layer.kernel().requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", [2, 9])
@pytest.mark.parametrize("norm", [FieldBatchNorm, FieldGroupNorm])
@pytest.mark.parametrize("group", GROUPS)
def test_norms_commute(group, norm, fields, dtype):
    """Statistics shared over the group are the same for moved features; so are the running ones."""
    layer = drawn(norm(fields)).to(dtype)
    x = 2 * features(group, fields, dtype=dtype) + 1
    for mode in (True, False):
        layer.train(mode)
        for g in range(GROUPS[group]):
            assert relative(layer(moved(x, g, group)), moved(layer(x), g, group)) <= ROUND_OFF[dtype]


@pytest.mark.parametrize("fields", [2, 9])
@pytest.mark.parametrize("norm", [FieldBatchNorm, FieldGroupNorm])
def test_norms_of_features_without_pixels_are_those_of_one_pixel(norm, fields):
    """The short way for (b, g, c) agrees with a map of one pixel, in training and evaluation, running moments too."""
    short, long = drawn(norm(fields)).double(), drawn(norm(fields)).double()
    x = torch.randn(6, 8, fields, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for mode in (True, False):
        assert (
            relative(short.train(mode).of_elements(x), long.train(mode)(x[..., None, None])[..., 0, 0])
            <= ROUND_OFF[torch.float64]
        )
    for a, b in zip(short.buffers(), long.buffers(), strict=True):
        assert relative(a, b) <= ROUND_OFF[torch.float64]


def test_a_convolution_of_one_position_is_the_plain_one():
    """Where kernel and map have one size, the matrix product gives what the convolution gives in the middle pixel."""
    layer = drawn(GroupConv(3, 2, 3, group="D4", padding=0)).double()
    x = features("D4", box=3)
    padded = GroupConv(3, 2, 3, group="D4", padding=1).double()
    padded.load_state_dict(layer.state_dict())
    assert relative(layer(x)[..., 0, 0], padded(x)[..., 1, 1]) <= ROUND_OFF[torch.float64]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("fields", [2, 9])
def test_batch_norm_is_torch_s(fields, channels_last):
    """Both ways of computing it are torch's over (b, c, all else): values, gradients, running statistics."""
    own, theirs = drawn(FieldBatchNorm(fields)).double(), drawn(nn.BatchNorm2d(fields)).double()
    x = (2 * features("D4", fields) + torch.arange(fields)[:, None, None]).requires_grad_()
    flat = x.flatten(1, 2).contiguous(memory_format=torch.channels_last) if channels_last else x.flatten(1, 2)
    outs = []
    for module, value in ((own, flat.unflatten(1, (8, -1))), (theirs, x.transpose(1, 2).flatten(2, 3))):
        y = module(value)
        y = y if module is own else y.unflatten(2, (8, 8)).transpose(1, 2)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
        outs.append([y, *torch.autograd.grad((y * weights).sum(), [x, module.weight, module.bias])])
    for a, b in zip(*outs, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUND_OFF[a.dtype], atol=10 * ROUND_OFF[a.dtype])
    torch.testing.assert_close(own.running_mean, theirs.running_mean, rtol=ROUND_OFF[x.dtype], atol=0)
    torch.testing.assert_close(own.running_var, theirs.running_var, rtol=ROUND_OFF[x.dtype], atol=0)


def test_group_norm_is_torch_s():
    """Field by field, torch's group norm with the group as more pixels."""
    own, theirs = FieldGroupNorm(3).double(), nn.GroupNorm(3, 3).double()
    x = features("D4") + 3
    expected = theirs(x.transpose(1, 2).flatten(2, 3)).unflatten(2, (8, 8)).transpose(1, 2)
    torch.testing.assert_close(own(x), expected, rtol=0, atol=10 * ROUND_OFF[x.dtype])


@pytest.mark.parametrize("box", [8, 9, 2, 3])
@pytest.mark.parametrize("pool", [max_pool_fields, avg_pool_fields])
def test_pooling_commutes_exactly(pool, box):
    """On even and odd maps alike: not one bit of the largest value differs, and round-off of the mean."""
    x = features("D4", box=box)
    for g in range(8):
        a, b = pool(moved(x, g, "D4")), moved(pool(x), g, "D4")
        assert a.shape[-1] == pooled_size(box)
        torch.testing.assert_close(a, b, rtol=0, atol=0 if pool is max_pool_fields else ROUND_OFF[a.dtype])


@pytest.mark.parametrize("box", [8, 9])
def test_mean_pooling_keeps_constants(box):
    """The mean of a constant map is the constant, at the edge of odd maps too."""
    assert torch.equal(
        avg_pool(torch.ones(1, 1, box, box)), torch.ones(1, 1, pooled_size(box), pooled_size(box))
    )


def test_strided_convolution_would_not_commute():
    """What pooling avoids: a stride of 2 on an even map takes other pixels of a mirrored image."""
    layer = LiftConv(1, 1, group="D4")
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    strided = [layer(act_on_images(x, g))[..., ::2, ::2] for g in (0, 4)]
    assert relative(strided[1], moved(strided[0], 4, "D4")) > 0.1


@pytest.mark.parametrize("kind_in", KINDS)
@pytest.mark.parametrize("kind_out", KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_linear_maps_commute_and_are_all(group, kind_in, kind_out):
    """Every layer commutes, bias included; there are as many weights as the characters allow."""
    into, out = (representation(k, group) for k in (kind_in, kind_out))
    traces = [torch.einsum("gii->g", r) for r in (into, out)]
    count = round(float((traces[0] * traces[1]).mean()))
    assert len(intertwiners(kind_in, kind_out, group)) == count
    if count == 0:
        with pytest.raises(BadInput):
            EquivariantLinear(kind_in, 2, kind_out, 3, group=group)
        return
    for dtype in DTYPES:
        layer = drawn(EquivariantLinear(kind_in, 2, kind_out, 3, group=group)).to(dtype)
        x = torch.randn(4, into.shape[1], 2, generator=torch.Generator().manual_seed(0)).to(dtype)
        for a, b in zip(into.to(dtype), out.to(dtype), strict=True):
            assert relative(layer(a @ x), b @ layer(x)) <= ROUND_OFF[dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_representations_multiply_as_the_elements(group, kind):
    """rho(a) rho(b) = rho(a b)."""
    rho = representation(kind, group)
    assert torch.equal(rho[:, None] @ rho[None], rho[multiplication_table(group)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("box", [16, 17])
def test_filter_bank_commutes_and_fixes_the_contrast(box, dtype):
    """Moved images give moved channels; scale and offset of the images do not matter; mean and deviation are as said."""
    bank = FilterBank(box).to(dtype)
    images = torch.randn(3, box, box, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = bank(images)
    for g in range(8):
        assert relative(bank(act_on_images(images, g)), act_on_images(out, g)) <= ROUND_OFF[dtype]
    assert relative(bank(7 * images + 3), out) <= 100 * ROUND_OFF[dtype]  # strong blurs leave little contrast
    tolerance = {"rtol": 0, "atol": 100 * ROUND_OFF[dtype]}
    torch.testing.assert_close(out.mean((-2, -1)), torch.full((3, 5), MEAN, dtype=dtype), **tolerance)
    spread = out.std((-2, -1), correction=0)
    torch.testing.assert_close(spread, torch.full((3, 5), DEVIATION, dtype=dtype), **tolerance)


def test_filter_bank_blurs_by_its_variances():
    """Away from the edge a point becomes the Gaussian of that variance; the first filter leaves it alone."""
    bank = FilterBank(32).double()
    point = torch.zeros(32, 32, dtype=torch.float64)
    point[16, 16] = 1
    blurred = bank(point[None])[0]
    assert blurred[0].argmax() == 16 * 32 + 16
    top = blurred[2] - blurred[2].min()
    assert float(top[16, 17] / top[16, 16]) == pytest.approx(math.exp(-0.5), rel=1e-6)


def test_sizes_that_do_not_fit_are_refused():
    """Kernels of even size need a padding, features their number of channels, pooling a square map."""
    with pytest.raises(BadInput, match="even size 2"):
        GroupConv(2, 2, 2, group="D4")
    with pytest.raises(BadInput, match="24 channels"):
        GroupConv(3, 2, group="D4")(features("D4", 2))
    with pytest.raises(BadInput, match="4 x 6"):
        max_pool(torch.zeros(1, 1, 4, 6))
