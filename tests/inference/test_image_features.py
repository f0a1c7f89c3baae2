from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from cryorbit.benchmarks.flex_tasks import FlexTask, flex_data
from cryorbit.data import Gaussians, ParticleStack, Pose
from cryorbit.data.particles import MemoryImages
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import axis_rotation
from cryorbit.inference.flex_likelihood import FlexLikelihood
from cryorbit.inference.image_features import AlignedImages, GradientFeatures, features_of, features_of_state
from cryorbit.inference.observations import observe

QUARTER_TURN = 1e-3
"""Relative, float32: the same sums in another order, of images whose grid turns onto itself."""
DIFFERENCES = 2e-2
"""Relative to the largest: finite differences of a misfit of thousands in float32."""
ROWS = torch.arange(6)


@cache
def small_stack(box: int) -> ParticleStack:
    """Round defocus, so that the microscope looks the same when the image is turned."""
    stack = flex_data("hinge", FlexTask(images=40, box=box, snr=3.0)).stack
    assert stack.ctf is not None
    return replace(stack, ctf=replace(stack.ctf, defocus_v_A=stack.ctf.defocus_u_A))


def pose_of(stack: ParticleStack) -> Pose:
    assert stack.pose is not None
    return stack.pose


def likelihood_of(stack: ParticleStack) -> FlexLikelihood:
    return FlexLikelihood(observe(stack, generator=torch.Generator().manual_seed(0)), resolution_A=None)


def quarter_turned(stack: ParticleStack) -> ParticleStack:
    """Images turned by 90 degrees about pixel box // 2, and poses with them. Even boxes lose the row at Nyquist's place."""
    images = stack.images[torch.arange(len(stack))]
    turned = images.rot90(-1, (-2, -1))  # x to y
    if stack.box % 2 == 0:
        turned = turned.roll(1, -1)
    turn = axis_rotation("z", torch.tensor(math.pi / 2)).to(pose_of(stack).rotation)
    pose = Pose(
        turn @ pose_of(stack).rotation, pose_of(stack).shift_A @ turn[:2, :2].mT.to(pose_of(stack).shift_A)
    )
    return replace(stack, images=MemoryImages(turned), pose=pose)


def anchors_of(stack: ParticleStack) -> Gaussians:
    generator = torch.Generator().manual_seed(2)
    unit = stack.pixel_size_A
    place = 0.15 * stack.box * unit * torch.randn(30, 3, generator=generator)
    return Gaussians(
        place, 100 * unit**3 * (0.5 + torch.rand(30, generator=generator)), torch.full((30,), unit)
    )


@pytest.mark.parametrize("box", [20, 21])
@pytest.mark.parametrize("name", ["gradient", "image"])
def test_turning_the_image_in_its_plane_changes_nothing(name, box):
    """Image and pose turned by a quarter: the features are the same, since they are in the molecule's frame."""
    stack = small_stack(box)
    found = []
    for one in (stack, quarter_turned(stack)):
        likelihood = likelihood_of(one)
        features = features_of(name, anchors_of(stack), box=box)
        found.append(features.read(likelihood, pose_of(one), ROWS))
    scale = found[0].abs().max()
    torch.testing.assert_close(found[1] / scale, found[0] / scale, rtol=0, atol=QUARTER_TURN)
    assert found[0].std() > 0


@pytest.mark.parametrize("name", ["gradient", "image"])
def test_shifting_the_image_changes_nothing(name):
    """Image rolled by whole pixels, pose shifted by as many: the same features. Grey values are left as they are."""
    stack = small_stack(21)
    likelihood = likelihood_of(stack)
    likelihood.observed = replace(likelihood.observed, scale_each=False)
    features = features_of(name, anchors_of(stack), box=21)
    before = features.read(likelihood, pose_of(stack), ROWS)
    images = stack.images[torch.arange(len(stack))].roll((2, -1), (-2, -1))
    shift = pose_of(stack).shift_A + torch.tensor([-1.0, 2.0]).to(pose_of(stack).shift_A) * stack.pixel_size_A
    rolled = replace(stack, images=MemoryImages(images), pose=Pose(pose_of(stack).rotation, shift))
    # The statistics of the noise stay those of the first stack: they are no part of the law.
    likelihood.observed = replace(likelihood.observed, stack=rolled)
    after = features.read(likelihood, pose_of(rolled), ROWS)
    scale = before.abs().max()
    torch.testing.assert_close(after / scale, before / scale, rtol=0, atol=QUARTER_TURN)


def test_gradient_features_are_derivatives_of_the_likelihood():
    """By the logarithm of a cluster's amplitudes, and by its shift in pixels, with the sign of the likelihood."""
    stack = small_stack(20)
    likelihood, anchors = likelihood_of(stack), anchors_of(stack)
    features = GradientFeatures.of(anchors, clusters=5)
    data = likelihood.transforms(ROWS)

    def misfit(moved: Gaussians):
        return likelihood.misfit(likelihood.model(moved, pose_of(stack)[ROWS], ROWS), data).double()

    found = features.read(likelihood, pose_of(stack), ROWS).unflatten(1, (-1, 4)).double()
    assert found.shape[1] == 5
    for cluster in (0, 3):
        inside, step = (features.label == cluster).float(), 0.02
        for k in range(4):
            ends = []
            for way in (step, -step):
                if k == 0:
                    moved = replace(anchors, amplitude=anchors.amplitude * (way * inside).exp())
                else:
                    offset = way * stack.pixel_size_A * inside[:, None] * torch.eye(3)[k - 1]
                    moved = replace(anchors, position_A=anchors.position_A + offset)
                ends.append(misfit(moved))
            slope = (ends[1] - ends[0]) / (2 * step)
            scale = found[..., k].abs().max()
            torch.testing.assert_close(found[:, cluster, k] / scale, slope / scale, rtol=0, atol=DIFFERENCES)


@pytest.mark.parametrize("name", ["gradient", "image"])
def test_features_come_back_from_their_state(name):
    """What is kept with an encoder reads the same numbers."""
    stack = small_stack(20)
    likelihood = likelihood_of(stack)
    features = features_of(name, anchors_of(stack), box=20)
    again = features_of_state(name, features.state())
    assert torch.equal(
        again.read(likelihood, pose_of(stack), ROWS), features.read(likelihood, pose_of(stack), ROWS)
    )


def test_aligned_images_are_of_even_size():
    """Cropping in Fourier space wants an even number of pixels."""
    with pytest.raises(BadInput, match="even number"):
        AlignedImages(15)
