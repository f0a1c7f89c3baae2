"""The U-Net over planes: what mixes is what shares an axis."""

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.models.triplane import AXES
from cryorbit.nn.plane_unet import PlaneBlock, PlaneUNet, RollOut, along_missing

OTHER_ORDER = 1e-4
"""Float32 sums in another order, through all layers."""


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    """Past the zeros that a new network starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for p in net.parameters():
            p.data += 0.05 * torch.randn_like(p)
    return net.requires_grad_(False)


def make(channels=(8, 16)) -> PlaneUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return shaken(PlaneUNet(2, channels, conditions=3))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [5, 6])
def test_means_are_over_the_axis_that_a_plane_lacks(n):
    """For pixel (u, v): of the plane that holds v and the third axis the mean at v, and likewise at u, by brute force."""
    planes = draw(1, 3, 2, n, n)
    of_v, of_u = along_missing(planes)
    for p, (u, v) in enumerate(AXES):
        for axis, found in ((v, of_v), (u, of_u)):
            other = next(q for q in range(3) if q != p and axis in AXES[q])
            over = 1 if AXES[other][0] == axis else 2
            torch.testing.assert_close(found[0, p], planes[0, other].mean(over))


def test_a_pixel_of_one_plane_reaches_its_row_or_column_of_another():
    """Changing yz at (y0, z0) changes xy at rows next to y0, all x alike, and zx next to z0; nothing else."""
    net, x = shaken(RollOut(2)), draw(3, 2, 9, 9)
    changed = x.clone()
    changed[1, :, 6, 3] += 1.0  # z0 = 6, y0 = 3
    difference = (net(changed) - net(x)).abs().sum(1)
    assert difference[0].sum(1).nonzero()[:, 0].tolist() == [2, 3, 4]
    torch.testing.assert_close(difference[0, 3], difference[0, 3, :1].expand(9))
    assert difference[2].sum(0).nonzero()[:, 0].tolist() == [5, 6, 7]
    assert difference[1].nonzero().tolist() == [[6, 3]]


def test_turning_the_axes_turns_what_comes_out():
    """x -> y -> z -> x, when planes have no names: the same weights serve all three."""
    net, x, c = make(), draw(1, 3, 2, 8, 8), draw(1, 3)
    net.which.zero_()
    torch.testing.assert_close(
        net(x.roll(-1, 1), c), net(x, c).roll(-1, 1), rtol=OTHER_ORDER, atol=OTHER_ORDER
    )


def test_names_of_planes_and_places_matter():
    """Molecules stand along their axes in the middle: the network may know which plane and where."""
    net, x, c = make(), draw(1, 3, 2, 8, 8), draw(1, 3)
    assert not torch.allclose(net(x.roll(-1, 1), c), net(x, c).roll(-1, 1), atol=1e-2)
    flat = net(torch.zeros_like(x), c)[0, 0, 0]
    assert float(flat[2:6, 2:6].std()) > 1e-3


@pytest.mark.parametrize("n", [7, 8, 10])
def test_planes_of_any_size_come_back_as_they_were(n):
    assert make((8, 16, 16))(draw(2, 3, 2, n, n), draw(2, 3)).shape == (2, 3, 2, n, n)


def test_new_networks_say_nothing_and_new_blocks_change_nothing():
    x = draw(3, 8, 6, 6)
    assert torch.equal(PlaneBlock(8, 4)(x, draw(3, 4)), x)
    assert not PlaneUNet(2, (8, 16), conditions=3)(draw(1, 3, 2, 8, 8), draw(1, 3)).any()


def test_samples_of_a_batch_do_not_see_one_another():
    net, x, c = make(), draw(3, 3, 2, 8, 8), draw(3, 3)
    together = net(x, c)
    for i in range(3):
        torch.testing.assert_close(
            net(x[i : i + 1], c[i : i + 1])[0], together[i], rtol=OTHER_ORDER, atol=OTHER_ORDER
        )
    assert not torch.allclose(net(x, c + 1), together, atol=1e-2)


def test_two_sets_of_planes_may_be_seen_at_once():
    """What is known pixel by pixel beside the noisy planes; as many come out as one set has."""
    net = shaken(PlaneUNet(2, (8,), conditions=3, inputs=2))
    x, c = draw(1, 3, 4, 8, 8), draw(1, 3)
    assert net(x, c).shape == (1, 3, 2, 8, 8)
    assert not torch.allclose(net(x, c), net(torch.cat((x[:, :, :2], 0 * x[:, :, 2:]), 2), c), atol=1e-2)


def test_networks_that_cannot_be_are_refused():
    for features, channels in ((0, (8,)), (2, ()), (2, (12, 24))):
        with pytest.raises(BadInput, match="PlaneUNet"):
            PlaneUNet(features, channels, conditions=1)
