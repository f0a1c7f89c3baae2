import gzip
import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryorbit.data import Pose
from cryorbit.errors import BadFile
from cryorbit.geometry.conventions import matrix_to_relion_angles
from cryorbit.io.cryosparc import read_cryosparc
from cryorbit.io.cs_file import join_on_uid, read_cs, write_cs
from cryorbit.io.mrc import MrcImages, StackWriter
from cryorbit.io.notices import ContrastSignWarning, ShiftUnitWarning, UnusedAberrationWarning
from cryorbit.io.particles import read_particles, require_ctf, require_pose, write_images, write_particles

N = 6
ROTATION = 1e-5
"""Largest element difference of a rotation that went through a float32 rotation vector."""
SHIFT_A = 1e-4


def _table(**columns):
    described = []
    for name, values in columns.items():
        described.append((name.replace("__", "/"), values.dtype, values.shape[1:]))
    out = np.zeros(len(next(iter(columns.values()))), dtype=described)
    for name, values in columns.items():
        out[name.replace("__", "/")] = values
    return out


def _blob(**changes):
    where = np.array([b"J1/a/s.mrc", b"J1/b/s.mrc"])
    columns = {
        "uid": np.array([7, 2**64 - 5, 3, 11, 2**40, 6], np.uint64),
        "blob__path": where[[1, 0, 1, 0, 1, 0]],
        "blob__idx": np.array([2, 1, 0, 3, 4, 5], np.uint32),
        "blob__shape": np.full((N, 2), 8, np.uint32),
        "blob__psize_A": np.full(N, 2.0, np.float32),
        "blob__sign": np.array([1, -1, 1, -1, 1, -1], np.float32),
        "blob__import_sig": np.arange(N, dtype=np.uint64),
    }
    return {**columns, **changes}


def _ctf():
    k = np.arange(N, dtype=np.float32)
    return {
        "ctf__type": np.full(N, b"imported"),
        "ctf__exp_group_id": np.array([0, 3, 0, 3, 0, 3], np.uint32),
        "ctf__accel_kv": np.full(N, 300, np.float32),
        "ctf__cs_mm": np.full(N, 2.7, np.float32),
        "ctf__amp_contrast": np.full(N, 0.1, np.float32),
        "ctf__df1_A": 15000 + k,
        "ctf__df2_A": 14000 - k,
        "ctf__df_angle_rad": k / 7,
        "ctf__phase_shift_rad": k / 5,
        "ctf__scale": 1 + k / 10,
        "ctf__bfactor": 3 * k,
        "ctf__anisomag": np.zeros((N, 4), np.float32),
    }


def _pose(slot="alignments3D", *, seed=0, psize=3.0, **more):
    rng = np.random.default_rng(seed)
    columns = {
        f"{slot}__pose": rng.uniform(-1.5, 1.5, (N, 3)).astype(np.float32),
        f"{slot}__shift": rng.uniform(-4, 4, (N, 2)).astype(np.float32),
        f"{slot}__psize_A": np.full(N, psize, np.float32),
        f"{slot}__split": np.array([0, 1, 1, 0, 1, 0], np.uint32),
    }
    columns[f"{slot}__pose"][0] = 0  # where a careless exponential divides by zero
    columns[f"{slot}__pose"][1] = [0, np.pi, 0]
    return {**columns, **{f"{slot}__{k}": v for k, v in more.items()}}


@pytest.fixture
def cs_project(tmp_path):
    for name, offset in (("a", 0), ("b", 10)):
        (tmp_path / "J1" / name).mkdir(parents=True)
        with StackWriter(tmp_path / "J1" / name / "s.mrc", box=8, pixel_size_A=2.0) as stack:
            stack.append(torch.arange(1.0, N + 1)[:, None, None].expand(N, 8, 8) + offset)
    (tmp_path / "J2").mkdir()
    return tmp_path


@pytest.fixture
def main_file(cs_project):
    path = cs_project / "J2" / "cryosparc_P1_J2_003_particles.cs"
    write_cs(path, _table(**_blob(), **_ctf(), **_pose()))
    return path


def test_images_by_name_index_and_sign(main_file):
    """0-based index, stacks of one name in two folders; dark images become light."""
    stack = read_particles(main_file)
    assert stack.images[:].mean((1, 2)).tolist() == [13.0, -2.0, 11.0, -4.0, 15.0, -6.0]
    assert stack.images[torch.tensor([3])].mean().item() == -4.0
    assert stack.ids.tolist()[1] == str(2**64 - 5)
    assert stack.half_set.tolist() == [1, 2, 2, 1, 2, 1]
    assert stack.optics_group.tolist() == [1, 4, 1, 4, 1, 4]


def test_shifts_are_in_pixels_of_the_alignment(main_file):
    """shift_A = - shift * alignments3D/psize_A, not the image's pixel size."""
    raw = read_cs(main_file)
    expected = -raw["alignments3D/shift"] * 3.0
    np.testing.assert_allclose(read_particles(main_file).pose.shift_A, expected, rtol=0, atol=SHIFT_A)


def test_angles_are_radians(main_file):
    ctf = read_particles(main_file).ctf
    np.testing.assert_allclose(ctf.astigmatism_angle_deg, np.degrees(np.arange(N) / 7), rtol=1e-6)
    np.testing.assert_allclose(ctf.phase_shift_deg, np.degrees(np.arange(N) / 5), rtol=1e-6)


def test_the_exponential_is_the_transpose(main_file):
    """exp([pose]x) = A^T, also at zero and at half a turn."""
    expected = Rotation.from_rotvec(read_cs(main_file)["alignments3D/pose"]).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(read_particles(main_file).pose.rotation, expected, rtol=0, atol=1e-6)


def test_passthrough_is_joined_on_uid(cs_project):
    """Slots from another file, whose rows lie otherwise and which knows more particles."""
    whole = _table(**_blob(), **_ctf(), **_pose())
    reference = cs_project / "J2" / "all_particles.cs"
    write_cs(reference, whole)
    expected = read_particles(reference)
    reference.unlink()
    uid = _blob()["uid"]
    write_cs(cs_project / "J2" / "J2_particles.cs", _table(uid=uid, **_pose()))
    with pytest.raises(BadFile, match=r"no blob/path and blob/idx.*passthrough"):
        read_particles(cs_project / "J2" / "J2_particles.cs")
    more = np.concatenate([_table(**_blob(), **_ctf())] * 2)
    more["uid"][N:] += 1000
    order = np.random.default_rng(3).permutation(2 * N)
    write_cs(cs_project / "J2" / "P1_J2_passthrough_particles.cs", more[order])
    few = _table(**{k: v[:2] for k, v in _blob().items()})
    write_cs(
        cs_project / "J2" / "P1_J2_passthrough_particles_class_0.cs", few
    )  # of other particles: left alone
    stack = read_particles(cs_project / "J2" / "J2_particles.cs")
    assert torch.equal(stack.images[:], expected.images[:])
    assert torch.equal(stack.ctf.defocus_u_A, expected.ctf.defocus_u_A)
    assert torch.equal(stack.pose.rotation, expected.pose.rotation)
    given = read_cryosparc(
        cs_project / "J2" / "J2_particles.cs",
        passthrough=[cs_project / "J2" / "P1_J2_passthrough_particles.cs"],
    )
    assert torch.equal(given.ctf.defocus_u_A, expected.ctf.defocus_u_A)
    assert read_particles(cs_project / "J2").source.endswith("J2_particles.cs")
    with pytest.raises(BadFile, match=r"4 particles are missing, the first being uid 3"):
        join_on_uid(_table(uid=uid), [("few.cs", few)])
    twice = np.concatenate([few, few])
    with pytest.raises(BadFile, match=r"stands there twice"):
        join_on_uid(_table(uid=uid[:2]), [("few.cs", twice)])


def test_the_most_probable_class_is_taken(cs_project):
    """Ab-initio and heterogeneous jobs have one slot per class."""
    best = np.array([0, 1, 1, 0, 1, 0])
    posterior = [np.where(best == k, 0.9, 0.1).astype(np.float32) for k in range(2)]
    a = _pose("alignments_class_0", seed=1, class_posterior=posterior[0])
    b = _pose("alignments_class_1", seed=2, psize=4.0, class_posterior=posterior[1])
    path = cs_project / "J2" / "particles.cs"
    write_cs(path, _table(**_blob(), **a, **b))
    pose = read_particles(path).pose
    for row, k in enumerate(best):
        shift = (a, b)[k][f"alignments_class_{k}__shift"][row] * (3.0, 4.0)[k]
        np.testing.assert_allclose(pose.shift_A[row], -shift, atol=SHIFT_A)


def test_unsaid_units_and_unused_aberrations_are_said(cs_project):
    columns = {**_blob(), **_ctf(), **_pose()}
    del columns["alignments3D__psize_A"]
    columns["ctf__anisomag"] = np.full((N, 4), 0.01, np.float32)
    path = cs_project / "J2" / "particles.cs"
    write_cs(path, _table(**columns))
    with pytest.warns(ShiftUnitWarning), pytest.warns(UnusedAberrationWarning, match=r"anisomag"):
        stack = read_particles(path)
    np.testing.assert_allclose(stack.pose.shift_A, -2.0 * columns["alignments3D__shift"], atol=SHIFT_A)


def test_exported_paths(cs_project):
    """A leading > means relative to the exported folder."""
    path = cs_project / "J1" / "exported.cs"
    write_cs(path, _table(**_blob(blob__path=np.array([b">a/s.mrc", b">b/s.mrc"])[[1, 0, 1, 0, 1, 0]])))
    assert read_particles(path).images[:].mean((1, 2)).tolist() == [13.0, -2.0, 11.0, -4.0, 15.0, -6.0]


def test_an_unchanged_stack_keeps_every_bit(main_file):
    """Every field, its type, the order of rows and fields; for a selection, its rows."""
    before = read_cs(main_file)
    stack = read_particles(main_file)
    write_particles(main_file.parent / "new.cs", stack)
    after = read_cs(main_file.parent / "new.cs")
    assert after.dtype == before.dtype
    assert after.tobytes() == before.tobytes()
    rows = torch.tensor([4, 1])
    write_particles(main_file.parent / "new.cs", stack.select(rows))
    assert read_cs(main_file.parent / "new.cs").tobytes() == before[[4, 1]].tobytes()


def test_new_poses_are_written_over(main_file):
    stack = read_particles(main_file)
    rotation = torch.linalg.qr(torch.randn(N, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    pose = Pose(rotation, torch.randn(N, 2, generator=torch.Generator().manual_seed(1)) * 9)
    changed = replace(stack, pose=pose, half_set=torch.tensor([2, 2, 1, 1, 1, 2]))
    columns = {"alignments3D/alpha": np.ones(N, np.float32), "confidence": torch.linspace(0, 1, N)}
    write_particles(main_file.parent / "new.cs", changed, extra_columns=columns)
    again = read_particles(main_file.parent / "new.cs")
    assert float((again.pose.rotation - rotation).abs().max()) < ROTATION
    assert float((again.pose.shift_A - pose.shift_A).abs().max()) < SHIFT_A
    assert again.half_set.tolist() == changed.half_set.tolist()
    raw = read_cs(main_file.parent / "new.cs")
    np.testing.assert_allclose(raw["cryorbit/confidence"], columns["confidence"])
    np.testing.assert_array_equal(raw["ctf/df1_A"], read_cs(main_file)["ctf/df1_A"])


def test_to_relion_and_back(main_file):
    """.cs -> .star -> .cs: poses, CTF, halves, uids, and the sign of the images, which STAR cannot say."""
    stack = read_particles(main_file)
    star, cs = main_file.parent / "a.star", main_file.parent / "b.cs"
    with pytest.warns(ContrastSignWarning, match=r"dark on light"):
        write_particles(star, stack)
    middle = read_particles(star)
    write_particles(cs, middle)
    end = read_particles(cs)
    assert end.ids.tolist() == stack.ids.tolist()
    for other in (middle, end):
        assert torch.equal(other.images[:], stack.images[:])
        assert float((other.pose.rotation - stack.pose.rotation).abs().max()) < ROTATION
        assert float((other.pose.shift_A - stack.pose.shift_A).abs().max()) < SHIFT_A
        assert other.half_set.tolist() == stack.half_set.tolist()
        assert other.optics_group.tolist() == stack.optics_group.tolist()
        for name in (
            "defocus_u_A",
            "astigmatism_angle_deg",
            "phase_shift_deg",
            "scale",
            "b_factor_A2",
            "cs_mm",
        ):
            torch.testing.assert_close(
                getattr(other.ctf, name), getattr(stack.ctf, name), rtol=1e-6, atol=1e-5
            )


def test_light_images_can_be_written_out(main_file):
    """One new stack, light on dark, and the metadata that point to it."""
    stack = read_particles(main_file)
    write_images(main_file.parent / "light.mrcs", stack, chunk=4)
    light = replace(stack, images=MrcImages([main_file.parent / "light.mrcs"]))
    for name in ("a.star", "b.cs"):
        write_particles(main_file.parent / name, light)
        assert torch.equal(read_particles(main_file.parent / name).images[:], stack.images[:])


def test_files_that_cannot_be_read(cs_project):
    """CSDAT with its remedy, no .cs at all, Python objects, cut files, no rows, no uid."""
    path = cs_project / "J2" / "particles.cs"
    path.write_bytes(b"\x94CSDAT" + bytes(100))
    with pytest.raises(BadFile, match=r"CSDAT.*pip install cryosparc-tools") as error:
        read_particles(path)
    assert "\n" not in str(error.value)
    path.write_bytes(b"PK\x03\x04 something")
    with pytest.raises(BadFile, match=r"not a .cs file"):
        read_particles(path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(BadFile, match=r"broken .cs"):
        read_particles(path)
    write_cs(path, _table(**_blob()))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadFile, match=r"broken .cs"):
        read_particles(path)
    for array, message in (
        (np.zeros(3), "plain array"),
        (_table(**_blob())[:0], "lists no particles"),
        (_table(a=np.zeros(3)), "no field uid"),
    ):
        write_cs(path, array)
        with pytest.raises(BadFile, match=message):
            read_particles(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blob__psize_A": np.array([2, 2, 2.5, 2, 2, 2], np.float32)}, "2 A in row 1 but 2.5 A in row 3"),
        ({"blob__psize_A": np.zeros(N, np.float32)}, "not positive"),
        (
            {"blob__idx": np.array([0, 1, 2, 99, 4, 5], np.uint32)},
            r"image 100 \(.*particles.cs, row 4\) does not exist",
        ),
        ({"blob__path": np.full(N, b"none.mrc")}, "row 1 names the stack none.mrc, which was not found"),
        ({"blob__shape": np.full((N, 2), 9, np.uint32)}, "blob/shape is 9 px, but the images .* have 8 px"),
        ({"blob__shape": np.array([[8, 8]] * 5 + [[8, 9]], np.uint32)}, r"row 6: blob/shape is \[8, 9\]"),
    ],
)
def test_bad_rows_are_named(cs_project, change, message):
    path = cs_project / "J2" / "particles.cs"
    write_cs(path, _table(**_blob(**change)))
    with pytest.raises(BadFile, match=message):
        read_particles(path)


def test_numbers_that_are_not_finite(cs_project):
    path = cs_project / "J2" / "particles.cs"
    for name in ("alignments3D__pose", "ctf__df1_A"):
        columns = {**_blob(), **_ctf(), **_pose()}
        columns[name][3] = np.nan
        write_cs(path, _table(**columns))
        with pytest.raises(BadFile, match=rf"row 4 \(uid 11\): {name.replace('__', '/')} is not finite"):
            read_particles(path)


def test_missing_poses_and_ctf_are_asked_for(cs_project):
    """A file without them is a stack; the verb that needs them says so."""
    path = cs_project / "J2" / "particles.cs"
    write_cs(path, _table(**_blob()))
    stack = read_particles(path)
    with pytest.raises(BadFile, match=r"particles.cs: no poses .*cryorbit abinitio"):
        require_pose(stack)
    with pytest.raises(BadFile, match=r"particles.cs: no CTF .*--no-ctf"):
        require_ctf(stack)


@pytest.mark.data
def test_the_real_refinement(data_dir, tmp_path):
    """2019 particles: the published angles of the first, and a round trip through every dialect."""
    path = data_dir / "metadata" / "cryosparc_P12_J24_001_particles.cs.gz"
    stack = read_particles(path, images="absent")
    assert (len(stack), stack.box, stack.pixel_size_A) == (2019, 180, 2.95)
    angles = matrix_to_relion_angles(stack.pose.rotation[0].double())
    np.testing.assert_allclose(angles, [-157.8085, 118.7910, 34.6833], atol=2e-4)
    np.testing.assert_allclose(stack.pose.shift_A[0], [-11.334375 * 2.95, 1.828125 * 2.95], atol=SHIFT_A)
    write_particles(tmp_path / "a.cs", stack)
    original = np.load(io.BytesIO(gzip.decompress(path.read_bytes())))
    assert read_cs(tmp_path / "a.cs").tobytes() == original.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ContrastSignWarning)
        write_particles(tmp_path / "a.star", stack)
    star = read_particles(tmp_path / "a.star", images="absent")
    write_particles(tmp_path / "b.cs", star)
    again = read_particles(tmp_path / "b.cs", images="absent")
    write_particles(tmp_path / "pose.pkl", again)
    write_particles(tmp_path / "ctf.pkl", again)
    pickled = read_particles(
        tmp_path / "a.star", images="absent", poses=tmp_path / "pose.pkl", ctf=tmp_path / "ctf.pkl"
    )
    for other in (star, again, pickled):
        assert float((other.pose.rotation - stack.pose.rotation).abs().max()) < ROTATION
        assert float((other.pose.shift_A - stack.pose.shift_A).abs().max()) < SHIFT_A
        torch.testing.assert_close(other.ctf.defocus_u_A, stack.ctf.defocus_u_A, rtol=1e-6, atol=0)
        torch.testing.assert_close(
            other.ctf.astigmatism_angle_deg, stack.ctf.astigmatism_angle_deg, rtol=0, atol=1e-4
        )


@pytest.mark.data
def test_other_real_files(data_dir):
    """An exported 2D job has no 3D poses; seven particles with a .mrc stack are dark on light."""
    exported = read_particles(data_dir / "metadata" / "cryosparc_J2_particles_exported.cs", images="absent")
    assert (len(exported), exported.box) == (22, 300)
    assert exported.pose is None
    assert exported.ctf is not None
    folder = data_dir / "stacks" / "empiar10076_7"
    dark, plain = read_particles(folder / "empiar_10076_7.cs"), read_particles(folder / "empiar_10076_7.star")
    assert torch.equal(dark.images[:], -plain.images[:])
    assert dark.pixel_size_A == pytest.approx(plain.pixel_size_A, rel=1e-6)
    torch.testing.assert_close(dark.ctf.defocus_u_A, plain.ctf.defocus_u_A)
    torch.testing.assert_close(
        dark.ctf.astigmatism_angle_deg, plain.ctf.astigmatism_angle_deg, rtol=0, atol=1e-4
    )
