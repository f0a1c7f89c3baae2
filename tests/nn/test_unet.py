"""The U-Net: boxes of any size, a fresh one says nothing, and conditions reach every sample on its own."""

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.nn.unet import UNet, depth_to_space, space_to_depth


def make(channels=(8, 16), **options) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet(channels, conditions=3, **options)
        for p in net.parameters():  # past the zeros that a new network starts from
            p.data += 0.05 * torch.randn_like(p)
    return net.requires_grad_(False)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("box", [7, 8, 10])
@pytest.mark.parametrize("patch", [1, 2])
def test_boxes_of_any_size_come_back_as_they_were(box, patch):
    """Odd, even, a multiple of the levels or not."""
    assert make(patch=patch)(draw(2, 1, box, box, box), draw(2, 3)).shape == (2, 1, box, box, box)


def test_a_new_network_says_nothing():
    """Zero from the last convolution, so that training starts at the loss of the preconditioning alone."""
    net = UNet((8, 16), conditions=3, attention=True)
    assert float(net(draw(1, 1, 8, 8, 8), draw(1, 3)).detach().abs().max()) == 0


def test_cubes_become_channels_and_back():
    """A permutation: exact, and the patch of the first voxel holds its neighbours."""
    x = draw(2, 3, 4, 4, 4)
    cubes = space_to_depth(x, 2)
    assert torch.equal(depth_to_space(cubes, 2), x)
    assert sorted(cubes[0, :8, 0, 0, 0].tolist()) == sorted(x[0, 0, :2, :2, :2].flatten().tolist())


@pytest.mark.parametrize("attention", [False, True])
def test_samples_of_a_batch_do_not_see_one_another(attention):
    """Each map and its condition alone decide its result."""
    net = make(attention=attention)
    x, c = draw(3, 1, 8, 8, 8), draw(3, 3)
    together = net(x, c)
    for i in range(3):
        # Convolutions of other batch sizes add in another order.
        torch.testing.assert_close(net(x[i : i + 1], c[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(net(x, c + 1), together, atol=1e-2)


def test_inside_a_box_a_map_that_moves_moves_its_result():
    """By a whole number of the coarsest voxels, away from the faces, with no attention."""
    net = make()
    x = torch.zeros(1, 1, 48, 48, 48)
    x[..., 22:26, 22:26, 22:26] = draw(4, 4, 4)
    c = draw(1, 3)
    here, there = net(x, c), net(x.roll((2, 4, -2), (2, 3, 4)), c)
    inner = slice(18, 30)
    moved = here.roll((2, 4, -2), (2, 3, 4))
    # Groups are normalised over the box, where the same values stand elsewhere; faces are too far away to matter.
    torch.testing.assert_close(
        there[..., inner, inner, inner], moved[..., inner, inner, inner], rtol=0, atol=1e-4
    )


def test_the_smallest_useful_network_has_the_size_it_says():
    """16-32-64 channels: 0.4 million weights, what a CPU trains on 32^3 in minutes."""
    net = UNet((16, 32, 64), conditions=12)
    assert 0.3e6 < sum(p.numel() for p in net.parameters()) < 0.5e6


def test_networks_that_cannot_be_are_refused():
    for wrong in ({"channels": ()}, {"channels": (8,), "patch": 3}, {"channels": (12, 24)}, {"blocks": 0}):
        with pytest.raises(BadInput, match="UNet"):
            UNet(**{"channels": (8,), "conditions": 1, **wrong})
