"""Laws of symmetry expansion."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.data.expansion import (
    collapse_expansion,
    expand_by_symmetry,
    expansion_columns,
    symmetry_of_expansion,
)
from cryorbit.data.particles import MemoryImages
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.geometry.symmetry import point_group
from cryorbit.io.findings import duplicate_images, image_keys
from cryorbit.io.particles import read_particles, write_particles
from cryorbit.physics.project import project
from laws import ROUND_OFF

N = 5


def stack_of(n: int = N) -> ParticleStack:
    generator = torch.Generator().manual_seed(0)
    rotation = rotvec_to_matrix(torch.randn(n, 3, generator=generator, dtype=torch.float64))
    table = pd.DataFrame(
        {"rlnImageName": [f"{i + 1:06d}@s.mrcs" for i in range(n)], "score": np.arange(n) / 7}
    )
    return ParticleStack(
        images=MemoryImages(torch.arange(n, dtype=torch.float32)[:, None, None].expand(n, 8, 8)),
        pixel_size_A=2.0,
        ids=table["rlnImageName"].to_numpy(object),
        pose=Pose(rotation, torch.randn(n, 2, generator=generator, dtype=torch.float64)),
        half_set=torch.arange(n) % 2 + 1,
        tables={"particles": table},
    )


@pytest.mark.parametrize("name", ["C1", "C3", "D7", "T", "O", "I"])
def test_collapse_undoes_expand(name):
    """Rows times the order, copies side by side, the first of them bit by bit; and back again."""
    stack, order = stack_of(), len(point_group(name))
    wide = expand_by_symmetry(stack, name)
    assert len(wide) == N * order
    assert len(set(wide.ids.tolist())) == len(wide)
    assert wide.images[torch.arange(len(wide))][:, 0, 0].tolist() == [
        i for i in range(N) for _ in range(order)
    ]
    source = np.repeat(stack.ids.astype(str), order)
    back = collapse_expansion(wide, source)
    assert torch.equal(back.pose.rotation, stack.pose.rotation)
    assert torch.equal(back.pose.shift_A, stack.pose.shift_A)
    assert torch.equal(back.half_set, stack.half_set)
    assert back.ids.tolist() == stack.ids.tolist()
    pd.testing.assert_frame_equal(back.tables["particles"], stack.tables["particles"])


def test_rows_in_any_order_collapse_to_the_same_particles():
    """What decides is the source of a row, not its place."""
    stack = stack_of()
    wide = expand_by_symmetry(stack, "C4")
    shuffled = torch.randperm(len(wide), generator=torch.Generator().manual_seed(1))
    source = np.repeat(stack.ids.astype(str), 4)[shuffled.numpy()]
    back = collapse_expansion(wide.select(shuffled), source)
    assert sorted(back.ids.tolist()) == sorted(stack.ids.tolist())


@pytest.mark.parametrize("n", [20, 21])
@pytest.mark.parametrize("name", ["C3", "D2"])
def test_all_copies_explain_the_same_image(n, name):
    """The projection of a symmetric map is the same at every copy's pose, to the interpolation of the projector."""
    group = point_group(name)
    k = torch.arange(n, dtype=torch.float64) - n // 2
    where = torch.stack(torch.meshgrid(k, k, k, indexing="ij")[::-1], -1)
    centre = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    blobs = [torch.exp(-((where - g @ centre) ** 2).sum(-1) / 8.0) for g in group]
    volume = Volume(sum(blobs, torch.zeros(n, n, n).double()), 2.0)
    stack = stack_of(1)
    wide = expand_by_symmetry(stack, name)
    images = project(volume, wide.pose)
    scale = float(images.abs().max())
    torch.testing.assert_close(images, images[:1].expand_as(images), rtol=0, atol=0.02 * scale)


@pytest.mark.parametrize("name", ["C2", "C4", "D2", "D7", "T", "O", "I1", "I2", "I3", "I4"])
def test_the_symmetry_of_an_expansion_is_recognised(name):
    """From the poses alone, rounded as a STAR file rounds them."""
    stack = stack_of()
    wide = expand_by_symmetry(stack, name)
    order = len(point_group(name))
    rounded = (wide.pose.rotation * 1e5).round() / 1e5
    found = symmetry_of_expansion(rounded, np.repeat(stack.ids.astype(str), order))
    assert found is not None
    assert found[0] == order
    assert found[1] is not None
    same = point_group(found[1])
    distance = (same[:, None] - point_group(name)).abs().amax((-2, -1)).amin(1)
    assert float(distance.max()) < ROUND_OFF[torch.float64]


def test_other_repeats_are_no_expansion():
    """Single rows, unequal counts, and copies that no group relates."""
    stack = stack_of()
    assert symmetry_of_expansion(stack.pose.rotation, stack.ids.astype(str)) is None
    uneven = np.array(["a", "a", "b", "c", "d"])
    assert symmetry_of_expansion(stack.pose.rotation, uneven) is None
    pairs = np.array(["a", "a", "b", "b"])
    assert symmetry_of_expansion(stack.pose.rotation[:4], pairs) == (2, None)


def test_the_best_copy_can_be_kept():
    """--best-by: the copy with the largest value, its pose with it."""
    stack = stack_of()
    wide = expand_by_symmetry(stack, "C3")
    value = torch.rand(len(wide), generator=torch.Generator().manual_seed(2)).numpy()
    table = wide.tables["particles"].assign(rlnMaxValueProbDistribution=value)
    wide = replace(wide, tables={"particles": table})
    best = collapse_expansion(
        wide, np.repeat(stack.ids.astype(str), 3), best_by="rlnMaxValueProbDistribution"
    )
    chosen = value.reshape(N, 3).argmax(1) + 3 * np.arange(N)
    assert torch.equal(best.pose.rotation, wide.pose.rotation[torch.from_numpy(chosen)])


def test_what_cannot_be_expanded_or_collapsed_is_refused():
    """No poses, an unknown group, a column that is not there or holds words."""
    stack = stack_of()
    with pytest.raises(BadInput, match="no poses"):
        expand_by_symmetry(replace(stack, pose=None), "C2")
    with pytest.raises(BadInput, match="not known"):
        expand_by_symmetry(stack, "X2")
    marked = stack.tables["particles"].assign(cryorbitSourceId="x")
    with pytest.raises(BadInput, match="expanded by symmetry already"):
        expand_by_symmetry(replace(stack, tables={"particles": marked}), "C2")
    with pytest.raises(BadInput, match="no column absent"):
        collapse_expansion(stack, stack.ids, best_by="absent")
    with pytest.raises(BadInput, match="holds no numbers"):
        collapse_expansion(stack, stack.ids, best_by="rlnImageName")
    with pytest.raises(BadInput, match="one per row"):
        collapse_expansion(stack, stack.ids[:2])


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["FinalRefinement-OriginalParticles-PfCRT.star", "cryosparc_P12_J24_001_particles.cs.gz"]
)
def test_real_particles_expand_and_collapse(data_dir, tmp_path, name):
    """Files of real refinements: written, recognised, collapsed, and every pose and id as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = read_particles(data_dir / "metadata" / name, images="absent")
        path = tmp_path / ("wide.star" if ".star" in name else "wide.cs")
        write_particles(path, expand_by_symmetry(stack, "D7"), extra_columns=expansion_columns(stack, 14))
        wide = read_particles(path, images="absent")
        plain = tmp_path / path.name.replace("wide", "plain")
        write_particles(plain, stack)  # a RELION 3.0 file becomes one of 3.1: compare what was written
        columns = read_particles(plain, images="absent").tables["particles"].columns.tolist()
    (finding,) = duplicate_images(wide)
    assert "expanded by the symmetry D7" in finding.message
    back = collapse_expansion(wide, image_keys(wide))
    assert torch.equal(back.pose.rotation, stack.pose.rotation)
    assert back.ids.tolist() == stack.ids.tolist()
    assert back.tables["particles"].columns.tolist() == columns
