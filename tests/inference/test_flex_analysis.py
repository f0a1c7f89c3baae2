from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from cryorbit.data import Gaussians, Pose
from cryorbit.errors import BadInput
from cryorbit.inference.flex import FlexResult
from cryorbit.inference.flex_analysis import AnalysisSettings, analyse, verdict
from cryorbit.inference.flex_decode import best_view, decode_gaussians, motion_of
from cryorbit.models.deformation import make_gaussian_model
from laws import rotations

EXACT = 1e-5  # float32, tens of angstrom


def result_of(z: torch.Tensor, *, strength: float = 20.0) -> FlexResult:
    """A run with given latents, each known with the given precision."""
    g = torch.Generator().manual_seed(0)
    n, d = z.shape
    place = torch.randn(30, 3, generator=g) * 15
    anchors = Gaussians(place, torch.ones(30), torch.full((30,), 5.0))
    torch.manual_seed(0)  # the layers' first weights
    model = make_gaussian_model(anchors, "basis", latent=d, unit_A=3.0, rank=4, width=8, gates=True)
    precision = strength * torch.eye(d).repeat(n, 1, 1)
    pose = Pose(torch.eye(3).repeat(n, 1, 1), torch.zeros(n, 2))
    return FlexResult(model.eval(), z, precision, pose, torch.full((n,), 50.0), 100, 20, 3.0)


def normal(n: int, d: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("spread", "level"), [(0.25, "bad"), (math.sqrt(2.3 / 20), "caution"), (1.0, "good")]
)
def test_the_verdict_follows_the_spread(spread, level):
    """Latents that spread as their errors do show nothing; far beyond them, heterogeneity; between, it is left open."""
    found = analyse(result_of(spread * normal(800, 3)), AnalysisSettings(groups=3, count=3))
    assert verdict(found)[0] == level


@pytest.mark.parametrize("grouping", ["kmeans", "mixture"])
def test_groups_are_sorted_by_size_and_shown_by_their_own(grouping):
    """Three states of 300, 150 and 50 images are the groups, in that order; each is shown by one of its particles."""
    centre = torch.tensor([[1.5, 0.0], [-1.5, 0.0], [0.0, 1.5]])
    state = torch.repeat_interleave(torch.arange(3), torch.tensor([150, 300, 50]))
    z = centre[state] + 0.15 * normal(500, 2)
    found = analyse(result_of(z, strength=40.0), AnalysisSettings(groups=3, grouping=grouping, count=2))
    assert found.groups.size.tolist() == [300, 150, 50]
    for k, true in enumerate((1, 0, 2)):
        assert bool((found.groups.label[state == true] == k).all())
        assert int(state[found.groups.particle[k]]) == true
    torch.testing.assert_close(found.groups.latent, z[found.groups.particle])


def test_latents_that_are_all_one_are_told_of():
    """A run that learned nothing is analysed all the same: no drawing, no path, and the verdict says so."""
    found = analyse(result_of(torch.zeros(50, 2)), AnalysisSettings(groups=3, count=2))
    assert found.plane is None
    assert found.path is None
    assert verdict(found)[0] == "bad"
    assert found.groups.size.tolist() == [50]


def test_one_latent_number_is_enough():
    found = analyse(result_of(normal(60, 1)), AnalysisSettings(groups=2, count=3))
    assert len(found.series) == 1
    assert verdict(found)[0] == "good"


def test_decoded_gaussians_are_the_models():
    """Conformation k is what the model gives at latent k."""
    result = result_of(normal(5, 3))
    every = result.model(result.z)
    for k, one in enumerate(decode_gaussians(result.model, result.z)):
        torch.testing.assert_close(one.position_A, every.position_A[k])
        torch.testing.assert_close(one.amplitude, every.amplitude[k])
        assert one.conformations is None


def test_motion_is_measured_from_the_middle():
    """Gaussians that go 0, 1, ..., 4 A along x: a step of 4, rms sqrt 2, B-factor 16 pi^2 / 3."""
    place = torch.zeros(6, 3)
    series = [
        Gaussians(place + torch.tensor([float(k), 0, 0]), torch.ones(6), torch.ones(6)) for k in range(5)
    ]
    motion = motion_of(series)
    torch.testing.assert_close(motion.step_A, torch.tensor([[4.0, 0, 0]]).expand(6, 3))
    torch.testing.assert_close(motion.rms_A, torch.full((6,), math.sqrt(2.0)))
    assert float(motion.fade.max()) == 0
    torch.testing.assert_close(motion.atoms().b_factor_A2, torch.full((6,), 16 * math.pi**2 / 3))


def test_what_fades_is_told_apart_from_what_moves():
    """A Gaussian that falls to a quarter of its amplitude fades by 3/4 and its step is not counted as a motion."""
    place = torch.zeros(2, 3)
    far = torch.tensor([[1.0, 0, 0], [50.0, 0, 0]])
    width = torch.ones(2)
    motion = motion_of(
        [Gaussians(place, torch.ones(2), width), Gaussians(far, torch.tensor([1.0, 0.25]), width)]
    )
    torch.testing.assert_close(motion.fade, torch.tensor([0.0, 0.75]))
    assert motion.step_of_those_that_stay_A().tolist() == [1.0]


@given(rotations())
def test_the_best_view_goes_with_the_molecule(rotation):
    """It is a rotation; motion in a plane is seen from across that plane, however the molecule lies."""
    g = torch.Generator().manual_seed(4)
    place = torch.randn(50, 3, generator=g) * torch.tensor([30.0, 12.0, 10.0])
    away = torch.randn(50, 3, generator=g) * torch.tensor([6.0, 6.0, 0.0])
    turn = rotation.float()
    series = [Gaussians(p @ turn.T, torch.ones(50), torch.full((50,), 4.0)) for p in (place, place + away)]
    view = best_view(motion_of(series))
    torch.testing.assert_close(view @ view.T, torch.eye(3), rtol=0, atol=EXACT)
    assert float(torch.linalg.det(view)) == pytest.approx(1, abs=EXACT)
    seen = motion_of(series).step_A @ view.T
    share = seen[:, 2].square().sum() / seen.square().sum()
    assert float(share) < 0.05  # of the motion, along the line of sight: the molecule's shape has a word too
    across = (view @ turn)[0]
    assert abs(float(across[0])) > 0.9  # the long axis lies flat


@pytest.mark.parametrize("name", ["groups", "components", "neighbours"])
def test_settings_that_make_no_sense_are_refused(name):
    with pytest.raises(BadInput, match=name):
        AnalysisSettings(**{name: 0})
