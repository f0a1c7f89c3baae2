import os
import pickle
import warnings

import numpy as np
import pytest
import torch

from cryorbit.data import CTF, Pose
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.cryodrgn import (
    read_arrays,
    read_ctf_pickle,
    read_index_pickle,
    read_pose_pickle,
    write_ctf_pickle,
    write_pose_pickle,
)
from cryorbit.io.mrc import StackWriter
from cryorbit.io.notices import PixelSizeWarning, ShiftUnitWarning
from cryorbit.io.particles import read_particles

N = 5


def _rotations(seed=0):
    q = torch.linalg.qr(torch.randn(N, 3, 3, generator=torch.Generator().manual_seed(seed)))[0]
    return q * torch.linalg.det(q)[:, None, None]


def _dump(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class _Boom:
    def __reduce__(self):
        return os.mkdir, ("/tmp/cryorbit-must-never-exist",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_pickle_protocol(tmp_path, protocol, order):
    """Types, shapes and values; tuples, lists, several pickles in one file."""
    arrays = [np.asarray(np.arange(12).reshape(3, 4), dtype=t, order=order) for t in ("f4", ">f8", "i8", "?")]
    path = _dump(tmp_path / "a.pkl", (arrays[0], [arrays[1], {"x": arrays[2]}]), protocol)
    path.write_bytes(path.read_bytes() + pickle.dumps(arrays[3], protocol=protocol))
    (first, (second, third)), fourth = read_arrays(path)
    for found, wanted in zip((first, second, third["x"], fourth), arrays, strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype.newbyteorder("=") == wanted.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    "content",
    [
        _Boom(),
        (np.zeros(3), _Boom()),
        np.array([_Boom()], dtype=object),
        os.system,
        np.array(["x", None], dtype=object),
    ],
    ids=["call", "call in a tuple", "call in an array", "function", "objects"],
)
def test_nothing_but_arrays_is_unpickled(tmp_path, content):
    """A pickle that would run code is refused before it does."""
    path = _dump(tmp_path / "a.pkl", content)
    with pytest.raises(BadFile, match=r"not a pickle of NumPy arrays|no NumPy arrays of numbers"):
        read_arrays(path)
    assert not os.path.exists("/tmp/cryorbit-must-never-exist")


def test_broken_pickles(tmp_path):
    path = _dump(tmp_path / "a.pkl", np.zeros(100))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadFile, match=r"was not opened"):
        read_arrays(path)
    path.write_bytes(b"")
    with pytest.raises(BadFile, match=r"no NumPy arrays"):
        read_arrays(path)
    with pytest.raises(BadFile, match=r"cannot be read"):
        read_arrays(tmp_path / "none.pkl")


def test_shifts_are_fractions_of_the_box_with_relions_sign(tmp_path):
    """shift_A = - fraction * box * pixel size; rotations are A itself."""
    rotation, fraction = _rotations().numpy(), np.linspace(-0.1, 0.2, 2 * N).reshape(N, 2).astype(np.float32)
    pose = read_pose_pickle(_dump(tmp_path / "pose.pkl", (rotation, fraction)), box=64, pixel_size_A=3.0)
    np.testing.assert_array_equal(pose.rotation, rotation)
    np.testing.assert_allclose(pose.shift_A, -fraction * 192, rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: (r,), lambda r: [r]])
def test_no_shifts(tmp_path, wrap):
    """A bare array or a 1-tuple means none."""
    pose = read_pose_pickle(_dump(tmp_path / "p.pkl", wrap(_rotations().numpy())), box=64, pixel_size_A=3.0)
    assert not pose.shift_A.any()


def test_units_that_must_be_guessed(tmp_path):
    """Above 1 they cannot be fractions; pose.N.pkl may be either; both are said, and can be settled."""
    r = _rotations().numpy()
    path = _dump(tmp_path / "pose.pkl", (r, np.full((N, 2), 3.0)))
    with pytest.warns(ShiftUnitWarning, match=r"taken for pixels"):
        assert read_pose_pickle(path, box=64, pixel_size_A=2.0).shift_A[0].tolist() == [-6.0, -6.0]
    path = _dump(tmp_path / "pose.12.pkl", (r, np.full((N, 2), 0.5)))
    with pytest.warns(ShiftUnitWarning, match=r"fractions of the box are assumed"):
        assert read_pose_pickle(path, box=64, pixel_size_A=2.0).shift_A[0].tolist() == [-64.0, -64.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_pose_pickle(path, box=64, pixel_size_A=2.0, shifts="pixels").shift_A[0, 0] == -1.0


def test_poses_come_back(tmp_path):
    pose = Pose(_rotations(), torch.randn(N, 2, generator=torch.Generator().manual_seed(2)) * 9)
    write_pose_pickle(tmp_path / "pose.pkl", pose, box=64, pixel_size_A=3.0)
    rotation, fraction = pickle.loads((tmp_path / "pose.pkl").read_bytes())  # noqa: S301 (as cryoDRGN does)
    assert (rotation.dtype, fraction.dtype) == (np.float32, np.float32)
    back = read_pose_pickle(tmp_path / "pose.pkl", box=64, pixel_size_A=3.0)
    assert torch.equal(back.rotation, pose.rotation)
    torch.testing.assert_close(back.shift_A, pose.shift_A, rtol=0, atol=1e-5)
    with pytest.raises(BadInput, match=r"particle 1 exceeds the box"):
        write_pose_pickle(
            tmp_path / "p.pkl", Pose(pose.rotation, pose.shift_A + 1000), box=64, pixel_size_A=3.0
        )


def test_ctf_comes_back(tmp_path):
    """Nine columns; box and pixel size are those of the original data."""
    ctf = CTF.uniform(N, defocus_A=15000.0)
    write_ctf_pickle(tmp_path / "ctf.pkl", ctf, box=256, pixel_size_A=1.25)
    table = pickle.loads((tmp_path / "ctf.pkl").read_bytes())  # noqa: S301 (as cryoDRGN does)
    np.testing.assert_allclose(table[0], [256, 1.25, 15000, 15000, 0, 300, 2.7, 0.1, 0], rtol=1e-6)
    assert table.dtype == np.float32
    back = read_ctf_pickle(tmp_path / "ctf.pkl")
    assert torch.equal(back.ctf.defocus_u_A, ctf.defocus_u_A)
    assert torch.equal(back.ctf.cs_mm, ctf.cs_mm)
    assert back.pixel_size_A(256) == 1.25
    assert back.pixel_size_A(128) == 2.5


def test_a_phase_shift_that_was_missing(tmp_path):
    """CryoDRGN writes NaN where the STAR file had none."""
    table = np.tile(np.array([64, 2, 15000, 15000, 0, 300, 2.7, 0.1, np.nan], np.float32), (N, 1))
    assert not read_ctf_pickle(_dump(tmp_path / "ctf.pkl", table)).ctf.phase_shift_deg.any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((N, 3)), "rotations of shape"),
        (np.ones((N, 3, 3)), "row 1 is not a rotation"),
        ((np.tile(np.eye(3), (N, 1, 1)), np.zeros((N - 1, 2))), "5 rotations but shifts of shape"),
    ],
)
def test_bad_poses(tmp_path, content, message):
    with pytest.raises(BadFile, match=message):
        read_pose_pickle(_dump(tmp_path / "p.pkl", content), box=64, pixel_size_A=1.0)


def test_bad_ctf_and_indices(tmp_path):
    with pytest.raises(BadFile, match=r"\(n, 9\) is wanted"):
        read_ctf_pickle(_dump(tmp_path / "c.pkl", np.zeros((N, 8))))
    table = np.tile(np.array([64, 2, 15000, 15000, 0, 300, 2.7, 0.1, 0.0]), (N, 1))
    table[3, 2] = np.inf
    with pytest.raises(BadFile, match=r"row 4 has a value that is not finite"):
        read_ctf_pickle(_dump(tmp_path / "c.pkl", table))
    table[3] = table[0]
    table[2, 1] = 3.0
    with pytest.raises(BadFile, match=r"row 1 has box 64 and 2 A but row 3 has 64 and 3 A"):
        read_ctf_pickle(_dump(tmp_path / "c.pkl", table))
    assert read_index_pickle(_dump(tmp_path / "i.pkl", np.array([3, 1])), count=4).tolist() == [3, 1]
    with pytest.raises(BadFile, match=r"index 3 is beyond the 3"):
        read_index_pickle(tmp_path / "i.pkl", count=3)
    with pytest.raises(BadFile, match=r"whole numbers"):
        read_index_pickle(_dump(tmp_path / "i.pkl", np.array([0.5])), count=3)


@pytest.fixture
def stack(tmp_path):
    with StackWriter(tmp_path / "s.mrcs", box=8, pixel_size_A=1.0) as out:
        out.append(torch.zeros(N, 8, 8))
    return tmp_path / "s.mrcs"


def test_a_bare_stack_with_pickles(stack, tmp_path):
    """Pixel size from the ctf pickle scaled to this box; poses and CTF by position, so numbers must agree."""
    write_ctf_pickle(tmp_path / "ctf.pkl", CTF.uniform(N, defocus_A=1e4), box=16, pixel_size_A=1.5)
    pose = Pose(_rotations(), torch.ones(N, 2))
    write_pose_pickle(tmp_path / "pose.pkl", pose, box=8, pixel_size_A=3.0)
    found = read_particles(stack, poses=tmp_path / "pose.pkl", ctf=tmp_path / "ctf.pkl")
    assert found.pixel_size_A == 3.0
    assert torch.equal(found.pose.rotation, pose.rotation)
    torch.testing.assert_close(found.pose.shift_A, pose.shift_A)
    assert found.ids[1] == "000002@s.mrcs"
    with pytest.warns(PixelSizeWarning, match=r"3 A per pixel for 8 px images, but 2 A is used"):
        assert read_particles(stack, ctf=tmp_path / "ctf.pkl", pixel_size_A=2.0).pixel_size_A == 2.0
    write_ctf_pickle(tmp_path / "ctf.pkl", CTF.uniform(N + 1, defocus_A=1e4), box=16, pixel_size_A=1.5)
    with pytest.raises(BadFile, match=r"6 rows, but .*s.mrcs has 5 particles"):
        read_particles(stack, ctf=tmp_path / "ctf.pkl")


@pytest.mark.data
def test_real_pickles_agree_with_their_star_file(data_dir):
    """CryoDRGN made its pickles from this STAR file: rotations and CTF are the same."""
    folder = data_dir / "stacks" / "cryoet_ribosome_bin8"
    stack = read_particles(folder / "sta_testing_bin8.star")
    pose = read_pose_pickle(folder / "sta_pose.pkl", box=64, pixel_size_A=1.96)
    torch.testing.assert_close(pose.rotation, stack.pose.rotation, rtol=0, atol=1e-5)
    ctf = read_ctf_pickle(folder / "sta_ctf.pkl")
    assert (ctf.original_box, ctf.original_pixel_size_A) == (512, 1.82)
    for name in (
        "defocus_u_A",
        "defocus_v_A",
        "astigmatism_angle_deg",
        "voltage_kV",
        "cs_mm",
        "amplitude_contrast",
    ):
        assert torch.equal(getattr(ctf.ctf, name), getattr(stack.ctf, name))
    hand = read_particles(
        data_dir / "stacks" / "synthetic_hand" / "hand.mrcs.gz",
        poses=data_dir / "stacks" / "synthetic_hand" / "hand_rot_trans.pkl",
        pixel_size_A=1.0,
    )
    assert len(hand) == 100
    assert float(hand.pose.shift_A.abs().max()) > 0
    old = read_ctf_pickle(data_dir / "metadata" / "empiar10028_ctf.pkl.gz")
    assert (len(old.ctf), old.original_box, old.original_pixel_size_A) == (105247, 360, 1.34)
    kept = read_index_pickle(data_dir / "metadata" / "empiar10076_filtered.ind.pkl.gz", count=131899)
    assert kept.shape == (87327,)
