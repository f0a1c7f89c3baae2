import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cryorbit.data import Pose
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.notices import (
    DefaultOpticsWarning,
    PixelOriginsWarning,
    PixelSizeWarning,
    PlaceholderPoseWarning,
)
from cryorbit.io.particles import read_particles, write_particles
from cryorbit.io.star import read_star

ROTATION = 1e-5
"""Largest element difference of a rotation that went through a file: six decimals of a degree, float32."""
SHIFT_A = 1e-4
"""Likewise of a shift in angstrom."""
CTF_FIELDS = [
    "defocus_u_A",
    "defocus_v_A",
    "astigmatism_angle_deg",
    "voltage_kV",
    "cs_mm",
    "amplitude_contrast",
    "phase_shift_deg",
    "b_factor_A2",
    "scale",
]


def assert_same_particles(a, b):
    """Everything that two programs must agree on."""
    assert a.pixel_size_A == pytest.approx(b.pixel_size_A, rel=1e-6)
    assert (a.pose is None) == (b.pose is None)
    if a.pose is not None:
        assert float((a.pose.rotation - b.pose.rotation).abs().max()) <= ROTATION
        assert float((a.pose.shift_A - b.pose.shift_A).abs().max()) <= SHIFT_A
    assert (a.ctf is None) == (b.ctf is None)
    if a.ctf is not None:
        for name in [*CTF_FIELDS, "beam_tilt_mrad", "odd_zernike", "even_zernike", "magnification"]:
            x, y = getattr(a.ctf, name), getattr(b.ctf, name)
            assert (x is None) == (y is None), name
            if x is not None:
                assert torch.equal(x, y), name
    assert (a.half_set is None) == (b.half_set is None)
    if a.half_set is not None:
        assert torch.equal(a.half_set, b.half_set)


def test_the_test_vector(star):
    """(30, 50, 70) degrees is RELION's A, and the particle's centre sits at minus the origin."""
    pose = read_particles(star).pose
    expected = torch.tensor(
        [[-0.279454, 0.923721, -0.262003], [-0.694109, -0.005813, 0.719846], [0.663414, 0.383022, 0.642788]]
    )
    torch.testing.assert_close(pose.rotation[0], expected, rtol=0, atol=1e-6)
    moved = pose.rotation[0] @ torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(moved, torch.tensor([0.781980, 1.453803, 3.357822]), rtol=0, atol=2e-6)
    assert pose.shift_A[0].tolist() == [-1.5, 0.75]
    assert str(pose.shift_A[2, 0].item()) == "0.0"


def test_rows_are_joined_by_name_not_by_position(star):
    """Unsorted rows, two stacks of one name in different folders: each row gets its own image."""
    stack = read_particles(star)
    assert stack.images[:].mean((1, 2)).tolist() == [13.0, 2.0, 11.0, 4.0, 15.0, 6.0]
    assert stack.ids.tolist()[0] == "000003@Extract/b/s.mrcs"
    assert stack.half_set.tolist() == [1, 2, 1, 2, 1, 2]
    assert stack.optics_group.tolist() == [1, 2, 1, 2, 1, 2]
    assert stack.micrograph.tolist() == ["m2", "m1", "m2", "m1", "m2", "m1"]


def test_optics_are_joined_by_group_number(star):
    """The optics table is unsorted; group 1 has 300 kV."""
    ctf = read_particles(star).ctf
    assert ctf.voltage_kV.tolist() == [300.0, 200.0] * 3
    np.testing.assert_allclose(ctf.amplitude_contrast, [0.1, 0.07] * 3, rtol=1e-6)
    assert ctf.phase_shift_deg.tolist() == [5.25 * i for i in range(6)]
    assert ctf.scale.tolist() == [1.0] * 6
    assert ctf.b_factor_A2.tolist() == [0.0] * 6


def test_the_particle_table_wins(star, particles, optics, write_star_text):
    particles["rlnVoltage"] = 100.0
    star.write_text(write_star_text(optics=optics, particles=particles))
    assert read_particles(star).ctf.voltage_kV.tolist() == [100.0] * 6


def test_relions_defaults(star, particles, optics, write_star_text):
    """DefocusV = DefocusU, angle 0, phase 0; missing microscope settings are said aloud."""
    particles = particles.drop(columns=["rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"])
    optics = optics.drop(columns=["rlnVoltage", "rlnAmplitudeContrast"])
    star.write_text(write_star_text(optics=optics, particles=particles))
    with pytest.warns(DefaultOpticsWarning, match=r"no rlnVoltage \(200 is used\), rlnAmplitudeContrast \(0"):
        ctf = read_particles(star).ctf
    assert torch.equal(ctf.defocus_u_A, ctf.defocus_v_A)
    assert ctf.voltage_kV.tolist() == [200.0] * 6
    assert not ctf.astigmatism_angle_deg.any()
    assert not ctf.phase_shift_deg.any()


def test_aberrations_are_read(star, particles, optics, write_star_text):
    """Beam tilt, Zernike lists of unequal length, magnification; zeros and identities are None."""
    optics["rlnBeamTiltX"], optics["rlnBeamTiltY"] = [0.5, -1.0], [0.0, 2.0]
    optics["rlnOddZernike"] = ["[1,2,3]", "[4,5,6,7]"]
    optics["rlnEvenZernike"] = ["[0,0]", "[]"]
    for label, value in zip(("00", "01", "10", "11"), (1.01, 0.002, -0.003, 0.99), strict=True):
        optics[f"rlnMagMat{label}"] = value
    star.write_text(write_star_text(optics=optics, particles=particles))
    ctf = read_particles(star).ctf
    assert ctf.beam_tilt_mrad[:2].tolist() == [[-1.0, 2.0], [0.5, 0.0]]
    assert ctf.odd_zernike[:2].tolist() == [[4.0, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 0.0]]
    assert ctf.even_zernike is None
    np.testing.assert_allclose(ctf.magnification[0], [[1.01, 0.002], [-0.003, 0.99]], rtol=1e-6)
    for label, value in zip(("00", "01", "10", "11"), (1.0, 0.0, 0.0, 1.0), strict=True):
        optics[f"rlnMagMat{label}"] = value
    star.write_text(write_star_text(optics=optics, particles=particles))
    assert read_particles(star).ctf.magnification is None


def test_pixel_origins_beside_an_optics_table(star, particles, optics, write_star_text):
    """RELION reads such a file as not shifted: so do we, and say so, unless told to use them."""
    particles["rlnOriginX"] = particles.pop("rlnOriginXAngst")
    particles["rlnOriginY"] = particles.pop("rlnOriginYAngst")
    star.write_text(write_star_text(optics=optics, particles=particles))
    with pytest.warns(PixelOriginsWarning, match=r"--origins pixels"):
        assert not read_particles(star).pose.shift_A.any()
    assert read_particles(star, origins="pixels").pose.shift_A[0].tolist() == [-3.0, 1.5]
    with pytest.raises(BadFile, match=r"no rlnOriginXAngst"):
        read_particles(star, origins="angstrom")
    particles["rlnOriginX"] = particles["rlnOriginY"] = 0.0
    star.write_text(write_star_text(optics=optics, particles=particles))
    read_particles(star)  # nothing to lose, nothing to say


def test_angstrom_origins_win_where_both_stand(star, particles, optics, write_star_text):
    particles["rlnOriginX"] = particles["rlnOriginY"] = 7.0
    star.write_text(write_star_text(optics=optics, particles=particles))
    assert read_particles(star).pose.shift_A[0].tolist() == [-1.5, 0.75]
    assert read_particles(star, origins="pixels").pose.shift_A[0].tolist() == [-14.0, -14.0]


def _old(particles):
    """The same particles in RELION 3.0: one table, pixel origins, a detector and a magnification."""
    old = particles.drop(columns=["rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst"])
    old["rlnOriginX"], old["rlnOriginY"] = particles["rlnOriginXAngst"] / 2, particles["rlnOriginYAngst"] / 2
    old["rlnVoltage"], old["rlnSphericalAberration"], old["rlnAmplitudeContrast"] = 300.0, 2.7, 0.1
    old["rlnMagnification"], old["rlnDetectorPixelSize"] = 25000.0, 5.0
    return old


@pytest.mark.parametrize("block", ["", "images", "particles", "model_class_1"])
def test_relion_3_0(star, particles, write_star_text, block):
    """Pixel size is 10000 * detector / magnification, shifts are in pixels, the box stands in the stack."""
    star.write_text(write_star_text(**{block: _old(particles)}))
    stack = read_particles(star)
    assert stack.pixel_size_A == pytest.approx(2.0)
    assert stack.box == 8
    assert stack.pose.shift_A[0].tolist() == [-1.5, 0.75]
    write_particles(star.parent / "new.star", stack)
    again = read_particles(star.parent / "new.star")
    assert_same_particles(again, stack)
    tables = read_star(star.parent / "new.star")
    assert list(tables) == ["optics", "particles"]
    assert tables["optics"]["rlnImagePixelSize"].tolist() == [2.0]
    assert "rlnOriginX" not in tables["particles"]
    assert tables["particles"]["rlnSomethingNew"].tolist() == particles["rlnSomethingNew"].tolist()


@pytest.mark.parametrize("column", ["rlnAngleRot", "rlnAnglePsi"])
def test_placeholder_angles_are_no_pose(star, particles, optics, write_star_text, column):
    """-999 is never an angle: in all rows there are no poses, in some it is said which."""
    particles[column] = -999.0
    star.write_text(write_star_text(optics=optics, particles=particles))
    assert read_particles(star).pose is None
    particles.loc[:3, column] = 1.0
    star.write_text(write_star_text(optics=optics, particles=particles))
    with pytest.warns(PlaceholderPoseWarning, match=r"2 of 6 particles \(the first in row 5\)"):
        assert read_particles(star).pose is None


def test_no_angles_no_ctf(star, particles, optics, write_star_text):
    """A picked, not yet refined file is a stack without poses; one without defocus has no CTF."""
    some = particles.drop(columns=["rlnAngleTilt", "rlnDefocusU", "rlnRandomSubset"])
    star.write_text(write_star_text(optics=optics, particles=some))
    stack = read_particles(star)
    assert stack.pose is None
    assert stack.ctf is None
    assert stack.half_set is None


def test_an_unchanged_stack_keeps_every_digit(star):
    """Read and write: the same tables and texts, but for order of tables; unknown ones survive."""
    before = read_star(star)
    write_particles(star.parent / "new.star", read_particles(star))
    after = read_star(star.parent / "new.star")
    assert sorted(after) == sorted(before)
    for name in before:
        pd.testing.assert_frame_equal(after[name], before[name])
    assert after["general"]["rlnText"].tolist() == ["two words"]


def test_new_poses_and_halves_are_written_over(star, particles):
    """Poses, half sets and further columns come back; defocus keeps its digits; ids stay."""
    stack = read_particles(star)
    rotation = torch.linalg.qr(torch.randn(6, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    shift = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)) * 9
    half = torch.tensor([2, 2, 1, 1, 2, 1])
    changed = replace(stack, pose=Pose(rotation, shift), half_set=half)
    confidence = torch.linspace(0, 1, 6)
    write_particles(
        star.parent / "new.star", changed, extra_columns={"rlnMaxValueProbDistribution": confidence}
    )
    again = read_particles(star.parent / "new.star")
    assert_same_particles(again, changed)
    assert again.ids.tolist() == stack.ids.tolist()
    table = again.tables["particles"]
    assert table["rlnDefocusU"].tolist() == particles["rlnDefocusU"].round(6).tolist()
    np.testing.assert_allclose(table["rlnMaxValueProbDistribution"], confidence, rtol=1e-6)
    with pytest.raises(BadInput, match=r"but there are 6 particles"):
        write_particles(star.parent / "x.star", changed, extra_columns={"a": np.zeros(5)})


def test_new_ctf_is_written_over(star):
    """Changed values move to where RELION looks for them; unchanged ones stay."""
    stack = read_particles(star)
    ctf = replace(
        stack.ctf,
        defocus_u_A=stack.ctf.defocus_u_A + 10,
        cs_mm=stack.ctf.cs_mm + 0.5,
        b_factor_A2=torch.full((6,), 40.0),
    )
    write_particles(star.parent / "new.star", replace(stack, ctf=ctf))
    again = read_particles(star.parent / "new.star")
    for name in CTF_FIELDS:
        torch.testing.assert_close(getattr(again.ctf, name), getattr(ctf, name), rtol=1e-6, atol=0)
    assert (
        again.tables["particles"]["rlnDefocusV"].tolist() == stack.tables["particles"]["rlnDefocusV"].tolist()
    )


def test_a_selection_is_written_with_its_own_rows(star):
    """Rows chosen and reordered: images, ids, table rows and groups follow."""
    stack = read_particles(star).select(torch.tensor([5, 0, 3]))
    write_particles(star.parent / "new.star", stack)
    again = read_particles(star.parent / "new.star")
    assert again.images[:].mean((1, 2)).tolist() == [6.0, 13.0, 4.0]
    assert_same_particles(again, stack)
    assert again.tables["particles"]["rlnSomethingNew"].tolist() == ["z", "x", "a#b"]


def test_images_are_found_from_where_the_file_goes(star, project, tmp_path_factory):
    """Inside the project a name stays as given; outside it becomes relative; it can be absolute."""
    stack = read_particles(star)
    (project / "Other").mkdir()
    away = tmp_path_factory.mktemp("away") / "p.star"
    for path, options, start in (
        (project / "Other" / "p.star", {}, "Extract/"),
        (project / "Other" / "p.star", {"image_paths": "relative"}, "../Extract/"),
        (away, {"image_paths": "as given"}, "Extract/"),
        (away, {"image_paths": "absolute"}, str(project)),
        (away, {}, "../"),
    ):
        write_particles(path, stack, **options)
        name = read_star(path)["particles"]["rlnImageName"].iloc[0]
        assert name.startswith("000003@" + start)
    assert torch.equal(read_particles(away).images[:], stack.images[:])


def test_stacks_called_mrc_are_marked_for_relion(star, project, particles, optics, write_star_text):
    """RELION takes `x.mrc` for a map unless `:mrcs` follows; the id stays what it was."""
    (project / "Extract" / "a" / "s.mrcs").rename(project / "Extract" / "a" / "s.mrc")
    particles["rlnImageName"] = [f"{i}@Extract/a/s.mrc" for i in range(1, 7)]
    star.write_text(write_star_text(optics=optics, particles=particles))
    stack = read_particles(star)
    write_particles(star.parent / "new.star", stack)
    assert (
        read_star(star.parent / "new.star")["particles"]["rlnImageName"].iloc[0] == "1@Extract/a/s.mrc:mrcs"
    )
    again = read_particles(star.parent / "new.star")
    assert again.ids.tolist() == stack.ids.tolist()
    assert torch.equal(again.images[:], stack.images[:])


def test_where_stacks_are_looked_for(star, project, tmp_path_factory, particles, optics, write_star_text):
    """A data folder with the names below it; or by base name, but never two folders' stacks as one."""
    away = tmp_path_factory.mktemp("away") / "p.star"
    away.write_text(star.read_text())
    with pytest.raises(
        BadFile, match=r"row 1 names the stack Extract/b/s.mrcs, which was not found \(and 1 more"
    ):
        read_particles(away)
    assert torch.equal(read_particles(away, data_dir=project).images[:], read_particles(star).images[:])
    with pytest.raises(BadFile, match=r"row 1.* and .*row 2.* both come to"):
        read_particles(away, data_dir=project / "Extract" / "a")
    with pytest.raises(BadFile, match=r"no such folder"):
        read_particles(away, data_dir=project / "none")
    particles["rlnImageName"] = [f"{i}@/gone/away/s.mrcs" for i in range(1, 7)]
    away.write_text(write_star_text(optics=optics, particles=particles))
    stack = read_particles(away, data_dir=project / "Extract" / "a")
    assert stack.images[:].mean((1, 2)).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def _particles(label, value, row=None):
    def change(particles, optics):
        if row is None:
            particles[label] = value
        else:
            particles[label] = particles[label].astype(object)
            particles.loc[row, label] = value

    return change


def _optics(label, values):
    def change(particles, optics):
        optics[label] = values

    return change


def _drop(table, label):
    def change(particles, optics):
        (particles if table == "particles" else optics).drop(columns=[label], inplace=True)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_particles("rlnImageName", "000099@Extract/a/s.mrcs", 4), r"image 99 \(.*, row 5\) does not exist"),
        (_particles("rlnImageName", "000000@Extract/a/s.mrcs", 1), "row 2: rlnImageName is '000000@"),
        (
            _particles("rlnImageName", "Extract/a/s.mrcs", 2),
            "row 3: .* 6 sections and the row does not say which",
        ),
        (_particles("rlnOpticsGroup", 9, 3), "row 4 belongs to optics group 9, which"),
        (_particles("rlnAngleTilt", "nan", 2), "row 3: rlnAngleTilt is 'nan'"),
        (_particles("rlnDefocusU", "x", 0), "row 1: rlnDefocusU is 'x'"),
        (_particles("rlnCtfDataArePhaseFlipped", 1), "row 1: the images are phase-flipped"),
        (_optics("rlnCtfDataAreCtfPremultiplied", [1, 0]), "row 2: the images are multiplied by their CTF"),
        (_optics("rlnImageDimensionality", [3, 3]), "subtomograms"),
        (_optics("rlnOpticsGroup", [1, 1]), "optics group 1 is defined twice"),
        (
            _optics("rlnImagePixelSize", [2.1, 2.0]),
            r"optics group 1 \(first\) has a pixel size of 2 A but optics group 2 \(second\) has 2.1 A",
        ),
        (
            _optics("rlnImageSize", [10, 8]),
            r"optics group 1 .* image size of 8 px but optics group 2 .* 10 px",
        ),
        (_optics("rlnImageSize", [10, 10]), "rlnImageSize is 10 px, but the images .* have 8 px"),
        (_optics("rlnImagePixelSize", [0.0, 0.0]), "not positive"),
        (_optics("rlnOddZernike", ["[1,x]", "[1]"]), r"rlnOddZernike is '\[1,x\]'"),
        (
            _drop("particles", "rlnOpticsGroup"),
            "2 optics groups, but the particles table has no rlnOpticsGroup",
        ),
        (_drop("particles", "rlnImageName"), "no rlnImageName"),
    ],
)
def test_bad_tables_are_one_line(star, particles, optics, write_star_text, change, message):
    """Each names the file, the row and what to do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(particles, optics)
    star.write_text(write_star_text(optics=optics, particles=particles))
    with pytest.raises(BadFile, match=message) as error:
        read_particles(star)
    text = str(error.value)
    assert "\n" not in text
    assert str(star) in text
    assert text.endswith(".")


def test_groups_that_no_particle_uses_do_not_matter(star, particles, optics, write_star_text):
    particles["rlnOpticsGroup"] = 1
    optics["rlnImagePixelSize"] = [7.7, 2.0]
    star.write_text(write_star_text(optics=optics, particles=particles))
    assert read_particles(star).pixel_size_A == 2.0


def test_empty_files(star, optics, particles, write_star_text):
    star.write_text("")
    with pytest.raises(BadFile, match=r"empty"):
        read_particles(star)
    star.write_text(write_star_text(optics=optics))
    with pytest.raises(BadFile, match=r"no table of particles"):
        read_particles(star)
    star.write_text(write_star_text(optics=optics, particles=particles.iloc[:0]))
    with pytest.raises(BadFile, match=r"no rows"):
        read_particles(star)


def test_pixel_size_that_is_given(star, optics, particles, write_star_text):
    """It replaces the file's, with a word; where the file has none, silently."""
    with pytest.warns(PixelSizeWarning, match=r"2.5 A as you gave it, though the file says 2 A"):
        assert read_particles(star, pixel_size_A=2.5).pixel_size_A == 2.5
    star.write_text(write_star_text(optics=optics.drop(columns="rlnImagePixelSize"), particles=particles))
    assert read_particles(star, pixel_size_A=2.5).pixel_size_A == 2.5
    with pytest.warns(PixelSizeWarning, match=r"2 A is taken from the stack's header"):
        assert read_particles(star).pixel_size_A == 2.0


@pytest.mark.parametrize("label", ["rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize"])
def test_fallbacks_for_the_pixel_size(star, optics, particles, write_star_text, label):
    optics[label] = optics.pop("rlnImagePixelSize") * 1.5
    star.write_text(write_star_text(optics=optics, particles=particles))
    assert read_particles(star).pixel_size_A == 3.0


def test_images_listed_twice_get_ids_of_their_own(star, optics, particles, write_star_text):
    """As after symmetry expansion."""
    twice = pd.concat([particles, particles.iloc[:2]], ignore_index=True)
    star.write_text(write_star_text(optics=optics, particles=twice))
    ids = read_particles(star).ids.tolist()
    assert len(set(ids)) == 8
    assert ids[6] == ids[0] + "#2"


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "FinalRefinement-OriginalParticles-PfCRT.star",
        "relion31.6opticsgroups.star",
        "relion31.v2.star",
        "relion5.star",
        "sample_relion_data.star",
        "sta_testing.star",
    ],
)
def test_real_files_round_trip(data_dir, tmp_path, name):
    """RELION 3.0, 3.1 and 5 as projects left them: load, write, load, unchanged and changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixed = {"pixel_size_A": 1.25} if "6optics" in name else {}
        stack = read_particles(data_dir / "metadata" / name, images="absent", **mixed)
        assert stack.pose is not None
        assert stack.ctf is not None
        write_particles(tmp_path / "a.star", stack)
        again = read_particles(tmp_path / "a.star", images="absent", **mixed)
        assert_same_particles(again, stack)
        # Now with every pose written anew.
        turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        moved = replace(stack, pose=Pose(turn @ stack.pose.rotation, stack.pose.shift_A + 0.123456))
        write_particles(tmp_path / "b.star", moved)
        assert_same_particles(read_particles(tmp_path / "b.star", images="absent", **mixed), moved)
    old, new = stack.tables["particles"], again.tables["particles"]
    for column in old.columns.intersection(new.columns):
        if column != "rlnImageName":
            np.testing.assert_array_equal(old[column].to_numpy(), new[column].to_numpy())


@pytest.mark.data
def test_six_optics_groups(data_dir):
    """Groups of 1.24 and 1.25 A are not one stack; their values are each particle's own."""
    path = data_dir / "metadata" / "relion31.6opticsgroups.star"
    with pytest.raises(BadFile, match=r"optics group 6 \(opticsGroup6\) .* 1.25 A but optics group"):
        read_particles(path, images="absent")
    with pytest.warns(PixelSizeWarning):
        stack = read_particles(path, images="absent", pixel_size_A=1.25)
    table, optics = stack.tables["particles"], stack.tables["optics"].set_index("rlnOpticsGroup")
    for row in range(0, len(stack), 13):
        group = optics.loc[table["rlnOpticsGroup"].iloc[row]]
        assert float(stack.ctf.cs_mm[row]) == pytest.approx(group["rlnSphericalAberration"])
        assert float(stack.ctf.beam_tilt_mrad[row, 1]) == pytest.approx(group["rlnBeamTiltY"])
        assert float(stack.ctf.magnification[row, 0, 1]) == pytest.approx(group["rlnMagMat01"])
        odd = [float(v) for v in group["rlnOddZernike"].strip("[]").split(",")]
        np.testing.assert_allclose(stack.ctf.odd_zernike[row, : len(odd)], odd, rtol=1e-6)
    assert set(stack.optics_group.tolist()) == set(table["rlnOpticsGroup"])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("relion_4.0.star.gz", "multiplied by their CTF"),
        ("warp2_particles_matching.star.gz", "multiplied by their CTF"),
        ("relion_3.1_optics2.star", "subtomograms"),
        ("220728_TS_01.star", "no table of particles"),
        ("postprocess.star", "no table of particles"),
        ("mtf_falcon4EC_300kV.star", "no table of particles"),
    ],
)
def test_real_files_of_another_kind_are_refused(data_dir, name, reason):
    with pytest.raises(BadFile, match=reason):
        read_particles(data_dir / "metadata" / name)


@pytest.mark.data
def test_real_stacks(data_dir, tmp_path):
    """Every stack with a STAR file: counts, boxes, pixel sizes; and what RELION reads as zero shift."""
    stacks = data_dir / "stacks"
    ferritin = read_particles(stacks / "apoferritin_empiar10146" / "particles.star")
    assert (len(ferritin), ferritin.box, ferritin.pixel_size_A) == (1304, 96, 2.25)
    assert ferritin.pose is None
    assert abs(float(ferritin.images[0:200].mean())) < 0.5
    assert float(ferritin.ctf.defocus_u_A[0]) == pytest.approx(19935.7)
    bin8 = read_particles(stacks / "cryoet_ribosome_bin8" / "sta_testing_bin8.star")
    assert (len(bin8), bin8.box, bin8.pixel_size_A) == (219, 64, 1.96)
    tiny = read_particles(stacks / "cryojax_tiny" / "test_starfile.star")
    assert tiny.pose.shift_A[0].tolist() == pytest.approx([-32.05603, 21.564449])
    with pytest.warns(PixelOriginsWarning):
        shifted = read_particles(stacks / "relion_proj_64" / "rln_proj_64_shifted.star")
    assert not shifted.pose.shift_A.any()
    shifted = read_particles(stacks / "relion_proj_64" / "rln_proj_64_shifted.star", origins="pixels")
    assert shifted.pose.shift_A[0].tolist() == [-6.0, -10.0]
    with pytest.raises(BadFile, match=r"State the pixel size"):
        read_particles(stacks / "relion_proj_64" / "rln_proj_64.star")
    assert len(read_particles(stacks / "relion_proj_64" / "rln_proj_64.star", pixel_size_A=1.0)) == 5
    for stack in (ferritin, bin8, tiny, shifted):
        write_particles(tmp_path / "a.star", stack)
        again = read_particles(tmp_path / "a.star")
        assert_same_particles(again, stack)
        rows = torch.tensor([2, 0])
        assert torch.equal(again.images[rows], stack.images[rows])
