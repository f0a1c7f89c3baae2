from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cryorbit.data import Gaussians
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.models.deformation import make_gaussian_model
from cryorbit.models.deformation_fields import (
    BasisDeformation,
    MeshDeformation,
    PartsDeformation,
    cluster_centres,
    soft_assignment,
)
from laws import ROUND_OFF

FAMILIES = ["basis", "parts", "mesh", "mlp", "parts+mlp", "none"]
FITTED = 1e-10  # least squares in float64 over numbers of order 1


def anchors(n: int = 40) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        20 * torch.randn(n, 3, generator=g),
        0.5 + torch.rand(n, generator=g),
        3 + torch.rand(n, generator=g),
    )


def latents(b: int = 5, d: int = 3) -> Tensor:
    return torch.randn(b, d, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_decodes_all_gaussians_of_every_image(name):
    torch.manual_seed(0)
    model = make_gaussian_model(anchors(), name, latent=3, unit_A=2.0, parts=3, nodes=10)
    found = model(latents())
    assert found.position_A.shape == (5, 40, 3)
    assert found.amplitude.shape == (5, 40)
    assert bool((found.amplitude > 0).all())
    (found.position_A.square().sum() + found.amplitude.square().sum()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None and n != "log_width"]
    assert silent == []


@pytest.mark.parametrize("name", FAMILIES)
def test_one_latent_gives_the_same_molecule_alone_and_in_a_batch(name):
    torch.manual_seed(0)
    model = make_gaussian_model(anchors(), name, latent=3, unit_A=2.0, parts=3, nodes=10).double()
    z = latents().double()
    torch.testing.assert_close(
        model(z).position_A[3:4], model(z[3:4]).position_A, rtol=ROUND_OFF[torch.float64], atol=1e-10
    )


def test_a_model_without_motion_and_gates_is_its_anchors():
    model = make_gaussian_model(anchors(), "none", latent=3, unit_A=2.0, gates=False)
    found = model(latents())
    torch.testing.assert_close(found.position_A, anchors().position_A.expand(5, -1, -1))
    torch.testing.assert_close(found.amplitude, anchors().amplitude.expand(5, -1))


@pytest.mark.parametrize("angle_deg", [30.0, 180.0, 300.0])
def test_rigid_parts_move_rigidly_at_any_angle(angle_deg):
    """With all weight on one part the family is a rotation and a shift: every distance stays."""
    torch.manual_seed(0)
    position = anchors().position_A.double()
    parts = PartsDeformation(3, position, parts=1, width=8).double()
    with torch.no_grad():
        parts.motion[-1].bias.copy_(torch.tensor([0.0, math.radians(angle_deg), 0.0, 1.0, 2.0, 3.0]))
        parts.motion[-1].weight.zero_()
    moved = position + parts(latents().double())[0]
    before, after = torch.cdist(position, position), torch.cdist(moved, moved)
    torch.testing.assert_close(after, before, rtol=ROUND_OFF[torch.float64], atol=1e-5)  # cdist's root at 0


def test_a_basis_holds_a_full_turn():
    """x -> R x is linear in the entries of R: nine modes hold every angle."""
    position = anchors().position_A.double()
    angles = torch.linspace(0, 2 * math.pi, 50, dtype=torch.float64)
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), dim=0)
    turned = position @ rotvec_to_matrix(angles[:, None] * axis).mT - position
    singular = torch.linalg.svdvals(turned.flatten(1))
    assert int((singular > FITTED * singular[0]).sum()) <= 9
    basis = BasisDeformation(1, len(position), rank=9, width=8)
    assert basis.basis.shape == (9, 3 * len(position))


def test_a_mesh_carries_a_common_shift_exactly():
    torch.manual_seed(0)
    mesh = MeshDeformation(2, anchors().position_A.double(), nodes=8, rank=4, width=8).double()
    with torch.no_grad():
        mesh.nodes.basis.copy_(torch.tensor([1.0, 2.0, 3.0]).repeat(4, len(mesh.weight[0])))
    moved = mesh(latents(4, 2).double())
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), rtol=1e-12, atol=1e-12)


def test_assignments_sum_to_one_and_clusters_are_the_same_every_time():
    position = anchors().position_A
    first, second = cluster_centres(position, 5), cluster_centres(position, 5)
    assert torch.equal(first, second)
    torch.testing.assert_close(soft_assignment(position, first).sum(1), torch.ones(40))


def test_gates_close_and_open():
    model = make_gaussian_model(anchors(), "none", latent=2, unit_A=2.0)
    assert model.gate is not None
    with torch.no_grad():
        model.gate.basis.zero_()
        model.gate.logit[:20] = -30.0
    amplitude = model(latents(2, 2)).amplitude.detach()
    assert float(amplitude[:, :20].max()) < 1e-9
    torch.testing.assert_close(amplitude[0, 20:], anchors().amplitude[20:])


def test_impossible_models_are_refused():
    with pytest.raises(BadInput, match="not one of"):
        make_gaussian_model(anchors(), "wobble", latent=2, unit_A=1.0)
    many = Gaussians(torch.zeros(2, 3, 3), torch.ones(3), torch.ones(3))
    with pytest.raises(BadInput, match="isotropic anchors"):
        make_gaussian_model(many, "basis", latent=2, unit_A=1.0)
