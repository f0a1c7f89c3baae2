"""Files of priors."""

import pytest
import torch

from cryorbit.errors import BadFile
from cryorbit.inference.prior_recipe import PriorRecipe
from cryorbit.io.checkpoint import save_state
from cryorbit.io.weights import load_weights, save_weights, shipped_weights
from cryorbit.models.volume_prior import VolumePrior

HALF = 1e-3
"""Relative step of half precision, 2^-10."""


@pytest.mark.parametrize("half", [False, True])
def test_what_is_written_is_read(half, tmp_path):
    """Bit by bit, or to half precision; single precision comes out either way, whole numbers stay whole."""
    g = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(4, 3, generator=g), "n": torch.tensor([2])}
    save_weights(tmp_path / "p.safetensors", tensors, {"kind": "volumes"}, half=half)
    found, card = load_weights(tmp_path / "p.safetensors")
    assert card == {"kind": "volumes"}
    assert found["a"].dtype == torch.float32
    assert torch.equal(found["n"], tensors["n"])
    torch.testing.assert_close(found["a"], tensors["a"], rtol=HALF if half else 0, atol=1e-6 if half else 0)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(BadFile, match="prior train"):
        load_weights(tmp_path / "none.safetensors")
    save_state(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {"kind": "flex"})
    with pytest.raises(BadFile, match="not a prior"):
        load_weights(tmp_path / "other.safetensors")


def test_the_package_has_its_prior():
    """The shipped file is read, and its card is that of the preset it is said to be made by."""
    tensors, card = shipped_weights()
    shape = VolumePrior.from_state(tensors, card).shape
    recipe = PriorRecipe()
    assert card["kind"] == recipe.kind == "volumes"
    assert shape.box == recipe.box
    assert shape.channels == recipe.channels
    assert shape.voxel_size_A == recipe.voxel_size_A
    assert shape.resolution_A == recipe.map_resolution_A
