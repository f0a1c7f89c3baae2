"""Training of priors: it learns, it resumes to the same result, and batches have the units they say."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from cryorbit.data import Atoms, ProteinChain
from cryorbit.errors import BadInput
from cryorbit.inference.prior import PointTask, PriorSettings, VolumeTask, train_prior
from cryorbit.inference.prior_data import (
    ChainSource,
    DensityRange,
    DensitySource,
    map_spectrum,
    residue_places,
    root_mean_square,
)
from cryorbit.models.point_prior import PointPrior, PointPriorShape
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape
from cryorbit.physics.scatter import VOLT_A2, scattering_factor_A


def helix(n: int, *, seed: int = 0) -> ProteinChain:
    """A right-handed helix of C-alphas, its ends bent by chance; carbon atoms."""
    g = torch.Generator().manual_seed(seed)
    angle = torch.arange(n) * math.radians(100)
    ca = torch.stack((2.3 * angle.cos(), 2.3 * angle.sin(), 1.5 * torch.arange(n)), 1)
    ca[n // 2 :, 0] += torch.rand(1, generator=g) * torch.arange(n - n // 2)
    atoms = Atoms(
        ca, torch.full((n,), 6), torch.full((n,), 20.0), torch.ones(n), atom_name=np.array(["CA"] * n)
    )
    return ProteinChain(f"made_{seed}", "A" * n, ca, torch.arange(1, n + 1), atoms)


LEARNED = 0.85
"""Loss over that of the first steps: a network that learns nothing stays within a tenth of 1; measured below 0.75 for
chains, and 0.79 for maps, whose 1 is the Wiener filter."""
CHAINS = [helix(10 + 2 * i, seed=i) for i in range(4)]
DRAWN = DensityRange(box=8, voxel_size_A=(4.0, 6.0), resolution_A=(12.0, 14.0), shift_A=3.0)


def point_task() -> PointTask:
    prior = PointPrior(PointPriorShape(hidden=16, layers=2), generator=torch.Generator().manual_seed(0))
    return PointTask(prior, ChainSource(CHAINS, batch=8, seed=1))


def volume_task() -> VolumeTask:
    source = DensitySource([c.atoms for c in CHAINS[:2]], DRAWN, batch=2, seed=1)
    scale = root_mean_square(source, batches=2)
    shape = VolumePriorShape(
        channels=(8,),
        box=8,
        density_scale=scale,
        voxel_size_A=DRAWN.voxel_size_A,
        resolution_A=DRAWN.resolution_A,
        spectrum=map_spectrum(source, density_scale=scale, batches=2).power,
    )
    prior = VolumePrior(shape, generator=torch.Generator().manual_seed(0))
    return VolumeTask(prior, source, unconditioned=0.5)


@pytest.mark.parametrize("make", [point_task, volume_task])
def test_a_resumed_training_is_the_same_training(make):
    """Stopped after 4 of 8 steps and gone on from that record: weights equal bit by bit, and not those of 4 steps."""
    settings = PriorSettings(steps=8, record_every=2, warm_up=2)
    whole = list(train_prior(make(), settings))
    records = train_prior(make(), settings)
    kept = next(r for r in records if r.step == 4).state
    kept = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kept.items()}
    resumed = list(train_prior(make(), settings, state=kept))
    assert [r.step for r in resumed] == [6, 8, 8]
    for name, weight in whole[-1].result.tensors().items():
        assert torch.equal(resumed[-1].result.tensors()[name], weight)
    assert any(
        not torch.equal(kept[f"average.weight.{name}"], weight)
        for name, weight in whole[-1].result.tensors().items()
    )


def test_points_are_learned():
    """From the loss of a silent network, 1, to well below it: chains are not white."""
    records = list(train_prior(point_task(), PriorSettings(steps=150, record_every=50, warm_up=10)))
    assert records[-2].metrics["loss"] < LEARNED * records[0].metrics["loss"]
    assert set(records[0].metrics) == {"loss", "loss_fine", "loss_middle", "loss_coarse"}


def test_maps_are_learned():
    records = list(train_prior(volume_task(), PriorSettings(steps=80, record_every=20, warm_up=10)))
    assert records[-2].metrics["loss"] < LEARNED * records[0].metrics["loss"]


def test_every_setting_is_read():
    seen = set()

    class Spy(PriorSettings):
        def __getattribute__(self, name):
            seen.add(name)
            return super().__getattribute__(name)

    list(train_prior(point_task(), Spy(steps=1)))
    assert {f.name for f in dataclasses.fields(PriorSettings)} <= seen


def test_batches_hang_on_seed_and_step_alone():
    """Asked in any order, twice: the same; another step or seed: another batch."""
    source = ChainSource(CHAINS, batch=3, seed=5)
    third, first = source(3), source(1)
    assert torch.equal(source(3).position_A, third.position_A)
    assert third.position_A.shape != first.position_A.shape or not torch.equal(
        third.position_A, first.position_A
    )
    assert not torch.equal(
        ChainSource(CHAINS[:1], batch=3, seed=6)(3).position_A, source(3).position_A[:, :10]
    )


def test_chains_are_turned_and_cut_but_not_bent_or_scaled():
    """Steps along the chain are the file's, in angstrom; stretches are no longer than asked; hands are kept."""
    batch = ChainSource(CHAINS[3:], batch=5, longest=9, seed=2)(0)
    assert batch.mask.sum(1).tolist() == [9] * 5
    chain = CHAINS[3].ca_A
    steps = chain.diff(dim=0).norm(dim=1)
    for i in range(5):
        first = int(batch.residue[i, 0])
        found = batch.position_A[i].diff(dim=0)
        torch.testing.assert_close(found.norm(dim=1), steps[first : first + 8], rtol=1e-4, atol=1e-4)
        assert float((found[0] * torch.linalg.cross(found[1], found[2])).sum()) > 0


def test_gaps_stay_gaps():
    assert residue_places(torch.tensor([-3, -2, 5, 5, 2])).tolist() == [0, 1, 8, 9, 10]


def test_densities_hold_the_scattering_of_their_atoms():
    """Sum times voxel volume is 47.878 n f(0), at whatever size, pose and resolution: no map has a scale of its own."""
    batch = DensitySource([CHAINS[1].atoms], DRAWN, batch=4, seed=3)(0)
    one = float(scattering_factor_A(6, torch.zeros(1, dtype=torch.float64)))
    total = batch.density.double().sum((1, 2, 3, 4)) * batch.voxel_size_A.double() ** 3
    # A low pass of 14 A in a box of 32 A: what wraps round stays in the sum, only the fit at k = 0 counts.
    torch.testing.assert_close(total / (VOLT_A2 * one * 12), torch.ones(4).double(), rtol=1e-2, atol=0)
    assert bool((batch.resolution_A >= 2 * batch.voxel_size_A - 1e-5).all())
    assert float(batch.voxel_size_A.min()) >= 4.0
    assert float(batch.voxel_size_A.max()) <= 6.0


def test_impossible_sources_and_settings_are_refused():
    with pytest.raises(BadInput, match="0 chains"):
        ChainSource([], batch=1)
    with pytest.raises(BadInput, match="Leave them out"):
        DensitySource([helix(60).atoms], DRAWN, batch=1)
    with pytest.raises(BadInput, match="at best"):
        DensityRange(voxel_size_A=(3.0, 6.0), resolution_A=(6.0, 8.0))
    with pytest.raises(BadInput, match="--average"):
        PriorSettings(average=1.0)
    with pytest.raises(BadInput, match="share"):
        VolumeTask(
            VolumePrior(VolumePriorShape(channels=(8,))),
            DensitySource([CHAINS[0].atoms], DRAWN, batch=1),
            unconditioned=2.0,
        )
