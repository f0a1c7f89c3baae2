import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.nn.siren import Siren, sine_layer
from laws import ROUND_OFF

BFLOAT16 = 2e-2  # relative: three layers with eight bits each; measured 0.006


def make(*, seed: int = 0, **options) -> Siren:
    given = {"inputs": 3, "outputs": 2, "width": 64, "hidden": 2, "omega": 30.0, **options}
    return Siren(**given, generator=torch.Generator().manual_seed(seed))


def coordinates(n: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(1), dtype=dtype) - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_is_the_sine_of_omega_times_an_affine_map(dtype: torch.dtype):
    """sin(omega (W x + b)), term by term."""
    g = torch.Generator().manual_seed(2)
    x, weight, bias = (torch.randn(s, generator=g, dtype=dtype) / 10 for s in ((5, 3), (4, 3), (4,)))
    expected = torch.sin(30.0 * (x @ weight.T + bias))
    # Angles reach a few turns, so round-off is a few times that of the sines.
    torch.testing.assert_close(
        sine_layer(x, weight, bias, omega=30.0), expected, rtol=0, atol=10 * ROUND_OFF[dtype]
    )


@torch.no_grad()
def test_every_layer_has_the_same_spread():
    """Angles of hidden layers, biases apart, have size 1 in the mean square, whatever omega and depth."""
    for omega in (10.0, 40.0):
        net = make(width=256, hidden=4, omega=omega)
        x = coordinates(500)
        first, *middle, _ = net.linear()
        x = sine_layer(x, first.weight, first.bias, omega=omega)
        for layer in middle:
            angle = omega * (x @ layer.weight.T)
            assert 0.85 < float(angle.square().mean().sqrt()) < 1.15
            x = sine_layer(x, layer.weight, layer.bias, omega=omega)


@torch.no_grad()
def test_first_layer_is_drawn_from_one_over_its_inputs():
    """U(-1/3, 1/3) for three coordinates, U(+-sqrt(6/width)/omega) afterwards."""
    first, second, *_ = make(width=256, omega=30.0).linear()
    assert float(first.weight.abs().max()) == pytest.approx(1 / 3, rel=0.02)
    assert float(second.weight.abs().max()) == pytest.approx((6 / 256) ** 0.5 / 30, rel=0.001)


def test_gradients_are_those_of_finite_differences():
    """To coordinates and to all weights, float64."""
    net = make(width=5, hidden=1, omega=4.0).double()
    x = coordinates(3, dtype=torch.float64).requires_grad_()
    names, weights = zip(*net.named_parameters(), strict=True)

    def value(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(value, (x, *weights))


def test_low_precision_stays_close():
    """Hidden layers in bfloat16 change values by a few bits of eight, and the weights' gradients are float32."""
    full, low = make(), make(precision="bfloat16")
    a, b = full(coordinates(200)), low(coordinates(200))
    assert b.dtype == torch.float32
    assert float(((a - b).norm() / a.norm()).detach()) < BFLOAT16
    b.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in low.parameters())


def test_the_generator_alone_decides_the_weights():
    """Same seed, same network; torch's own state neither matters nor moves."""
    before = torch.get_rng_state()
    a, b, c = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    x = coordinates(4)
    assert torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))


def test_sizes_that_make_no_network_are_refused():
    with pytest.raises(BadInput, match=r"width 0"):
        make(width=0)
