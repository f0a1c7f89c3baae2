"""Laws of synchronisation."""

import math

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import geodesic_angle, random_rotations, rotvec_to_matrix
from cryorbit.geometry.superpose import align_frames
from cryorbit.geometry.synchronise import synchronise

F64 = torch.float64


def _network(n, seed, noise_deg=0.0, keep=1.0):
    """Truth, edges among all pairs (a share of them), and noisy relative rotations."""
    generator = torch.Generator().manual_seed(seed)
    truth = random_rotations(n, generator=generator, dtype=F64)
    edge = torch.triu_indices(n, n, 1).T
    edge = edge[torch.rand(len(edge), generator=generator) < keep]
    noise = math.radians(noise_deg) * torch.randn(len(edge), 3, generator=generator, dtype=F64)
    return truth, edge, truth[edge[:, 0]] @ rotvec_to_matrix(noise) @ truth[edge[:, 1]].mT


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_relations_give_exact_rotations(seed, keep):
    """Up to one rotation from the right, R_0 the identity; few edges suffice."""
    truth, edge, relative = _network(12, seed, keep=keep)
    found = synchronise(relative, edge, n=12)
    torch.testing.assert_close(found, truth @ truth[0].mT, rtol=0, atol=1e-10)


def test_noise_averages_out():
    """30 nodes, all pairs, 5.7 degrees per axis (9.9 rms): about 9.9 / sqrt(30) = 1.8 degrees are left."""
    errors = []
    for seed in range(5):
        truth, edge, relative = _network(30, seed, noise_deg=5.7)
        found = synchronise(relative, edge, n=30)
        gauge = align_frames(found.mT, truth.mT)  # found g = truth, so g^T found^T = truth^T
        errors.append(torch.rad2deg(geodesic_angle(found, truth @ gauge)).mean())
    assert 1.4 < float(torch.stack(errors).mean()) < 2.3  # the published draw: 1.88


def test_wrong_edges_of_no_weight_do_not_count():
    """A weight of 0 takes an edge out."""
    truth, edge, relative = _network(8, 3)
    relative[:5] = torch.eye(3, dtype=F64)
    weight = torch.ones(len(edge))
    weight[:5] = 0
    found = synchronise(relative, edge, n=8, weight=weight)
    torch.testing.assert_close(found, truth @ truth[0].mT, rtol=0, atol=1e-10)


def test_senseless_networks_are_refused():
    """Two islands, unknown nodes, negative weights."""
    eye = torch.eye(3).expand(2, 3, 3)
    with pytest.raises(BadInput, match="do not join"):
        synchronise(eye, torch.tensor([[0, 1], [2, 3]]), n=4)
    with pytest.raises(BadInput, match="nodes 0"):
        synchronise(eye, torch.tensor([[0, 1], [2, 4]]), n=4)
    with pytest.raises(BadInput, match="at least 0"):
        synchronise(eye, torch.tensor([[0, 1], [1, 2]]), n=3, weight=-torch.ones(2))
