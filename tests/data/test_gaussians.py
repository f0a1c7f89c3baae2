import pytest
import torch
from hypothesis import given

from cryorbit.data import Gaussians
from cryorbit.errors import BadInput
from laws import ROUND_OFF, rotations

N = 5


def some(*, isotropic: bool = True, batch: tuple[int, ...] = ()) -> Gaussians:
    g = torch.Generator().manual_seed(1)
    position = torch.randn(*batch, N, 3, generator=g, dtype=torch.float64)
    width = 1 + torch.rand(N, generator=g, dtype=torch.float64)
    if not isotropic:
        width = torch.diag_embed(width[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    return Gaussians(position, torch.ones(N, dtype=torch.float64), width)


@pytest.mark.parametrize("isotropic", [True, False])
@given(rotations())
def test_moving_keeps_what_a_rigid_motion_keeps(isotropic, rotation):
    """Distances, amplitudes and the covariances' invariants stay, and the way back is the identity."""
    shift = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    here = some(isotropic=isotropic)
    there = here.moved(rotation, shift)
    back = there.moved(rotation.mT, -rotation.mT @ shift)
    close = {"rtol": 0, "atol": 20 * ROUND_OFF[torch.float64]}
    torch.testing.assert_close(torch.pdist(there.position_A), torch.pdist(here.position_A), **close)
    torch.testing.assert_close(back.position_A, here.position_A, **close)
    torch.testing.assert_close(back.covariance_A2(), here.covariance_A2(), **close)
    turned = rotation @ here.covariance_A2() @ rotation.mT
    torch.testing.assert_close(there.covariance_A2(), turned, **close)


@pytest.mark.parametrize("isotropic", [True, False])
def test_selected_rows_are_those_rows(isotropic):
    rows = torch.tensor([3, 0])
    cloud = some(isotropic=isotropic, batch=(2,))
    chosen = cloud.select(rows)
    assert len(chosen) == 2
    assert torch.equal(chosen.position_A, cloud.position_A[:, rows])
    assert torch.equal(chosen.covariance_A2(), cloud.covariance_A2()[rows])


def test_conformations_are_counted_in_whichever_field_has_them():
    """Positions, amplitudes and widths may each be shared or one per conformation."""
    position, amplitude, width = torch.zeros(N, 3), torch.ones(N), torch.ones(N)
    assert Gaussians(position, amplitude, width).conformations is None
    for fields in (
        (position.expand(4, N, 3), amplitude, width),
        (position, amplitude.expand(4, N), width),
        (position, amplitude, width.expand(4, N)),
        (position, amplitude, torch.eye(3).expand(4, N, 3, 3)),
    ):
        assert Gaussians(*fields).conformations == 4


def test_what_is_no_sum_of_gaussians_is_refused_by_row():
    """Shapes that disagree, numbers that are not finite and widths that are not positive are named."""
    position, amplitude, width = torch.zeros(N, 3), torch.ones(N), torch.ones(N)
    with pytest.raises(BadInput, match="wanted position_A"):
        Gaussians(torch.zeros(N, 2), amplitude, width)
    with pytest.raises(BadInput, match="amplitude has shape"):
        Gaussians(position, torch.ones(N + 1), width)
    with pytest.raises(BadInput, match="width_A has shape"):
        Gaussians(position, amplitude, torch.ones(N, 3))
    with pytest.raises(BadInput, match="conformations"):
        Gaussians(position.expand(2, N, 3), amplitude.expand(3, N), width)
    for name, bad in (
        ("position_A", float("nan")),
        ("amplitude", float("inf")),
        ("width_A", 0.0),
        ("width_A", -1.0),
    ):
        fields = {"position_A": position.clone(), "amplitude": amplitude.clone(), "width_A": width.clone()}
        fields[name][3] = bad
        with pytest.raises(BadInput, match=f"{name} of Gaussian 3"):
            Gaussians(**fields)
    flat = torch.eye(3).repeat(N, 1, 1)
    flat[2, 2, 2] = 0
    with pytest.raises(BadInput, match="width_A of Gaussian 2"):
        Gaussians(position, amplitude, flat)
