import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from cryorbit.data import CTF, MemoryImages, ParticleStack, Pose
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.jobs import particle_file
from cryorbit.io.mrc import StackWriter
from cryorbit.io.notices import OddBoxWarning, PixelSizeWarning
from cryorbit.io.particles import (
    duplicate_images,
    header_disagreements,
    match_ids,
    read_particles,
    write_images,
    write_particles,
)
from cryorbit.io.star import read_star


def _stack(path, n=3, box=8, pixel_size_A=2.0, value=0.0):
    with StackWriter(path, box=box, pixel_size_A=pixel_size_A) as out:
        out.append(torch.full((n, box, box), value))


def test_relion_job_folders(star):
    """The final file; else the last iteration; else an error that lists what was looked for."""
    folder = star.parent
    assert read_particles(folder).source == str(star)
    for name in (
        "run_it005_data.star",
        "run_it012_data.star",
        "run_ct20_it021_data.star",
        "run_it009_optimiser.star",
    ):
        (folder / name).write_text(star.read_text())
    assert read_particles(folder).source == str(star)
    star.unlink()
    assert read_particles(folder).source.endswith("run_ct20_it021_data.star")
    (folder / "run_ct20_it021_data.star").rename(folder / "particles.star")
    assert read_particles(folder).source.endswith("particles.star")
    for path in folder.glob("*data.star"):
        path.unlink()
    (folder / "particles.star").unlink()
    with pytest.raises(BadFile, match=r"looked for run_data.star, particles.star.*\*particles\*.cs"):
        read_particles(folder)


def test_cryosparc_job_folders(tmp_path):
    """The last iteration, not the passthrough file; one class alone is taken, several are asked about."""
    for i, name in enumerate(
        [
            "P1_J3_passthrough_particles.cs",
            "cryosparc_P1_J3_004_particles.cs",
            "cryosparc_P1_J3_011_particles.cs",
        ]
    ):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - i, 1000 - i))
    assert particle_file(tmp_path).name == "cryosparc_P1_J3_011_particles.cs"
    (tmp_path / "cryosparc_P1_J3_class_00_00020_particles.cs").touch()
    assert particle_file(tmp_path).name == "cryosparc_P1_J3_011_particles.cs"
    for i in (4, 11):
        (tmp_path / f"cryosparc_P1_J3_{i:03d}_particles.cs").unlink()
    assert particle_file(tmp_path).name == "cryosparc_P1_J3_class_00_00020_particles.cs"
    (tmp_path / "cryosparc_P1_J3_class_01_00020_particles.cs").touch()
    with pytest.raises(BadFile, match=r"one particle file per class"):
        particle_file(tmp_path)


def test_lists_of_stacks(tmp_path):
    """Each line a stack, relative to the list; the header's pixel size with a word, or the one given."""
    (tmp_path / "x").mkdir()
    _stack(tmp_path / "x" / "a.mrcs", 3, value=1.0)
    _stack(tmp_path / "b.mrcs", 2, value=2.0)
    (tmp_path / "list.txt").write_text("# stacks\nx/a.mrcs\n\nb.mrcs\n")
    stack = read_particles(tmp_path / "list.txt", pixel_size_A=2.0)
    assert stack.images[:].mean((1, 2)).tolist() == [1, 1, 1, 2, 2]
    assert stack.ids.tolist()[2:4] == ["000003@x/a.mrcs", "000001@b.mrcs"]
    with pytest.warns(PixelSizeWarning, match=r"2 A is taken from the stack's header"):
        assert read_particles(tmp_path / "list.txt").pixel_size_A == 2.0
    _stack(tmp_path / "b.mrcs", 2, pixel_size_A=3.0)
    with pytest.raises(BadFile, match=r"no single pixel size in the stack headers \(2, 3 A\)"):
        read_particles(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("x/a.mrcs\nnone.mrcs\n")
    with pytest.raises(BadFile, match=r"list.txt: row 2 names the stack none.mrcs"):
        read_particles(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(BadFile, match=r"names no stack"):
        read_particles(tmp_path / "list.txt")


def test_a_list_written_as_star(tmp_path):
    _stack(tmp_path / "a.mrcs")
    stack = read_particles(tmp_path / "a.mrcs", pixel_size_A=2.0)
    write_particles(tmp_path / "a.star", stack)
    again = read_particles(tmp_path / "a.star")
    assert again.ids.tolist() == stack.ids.tolist()
    assert again.pixel_size_A == 2.0


def test_names_that_say_nothing(tmp_path, star):
    with pytest.raises(BadFile, match=r"no such file"):
        read_particles(tmp_path / "none.star")
    (tmp_path / "a.xyz").touch()
    with pytest.raises(BadFile, match=r"not the name of a particle file"):
        read_particles(tmp_path / "a.xyz")
    with pytest.raises(BadInput, match=r"no particle format"):
        write_particles(tmp_path / "a.xyz", read_particles(star))


def _simulated(n=4, **fields):
    return ParticleStack(
        images=MemoryImages(torch.ones(n, 8, 8)),
        pixel_size_A=1.5,
        ids=np.array([f"{i + 1:06d}@particles.mrcs" for i in range(n)], dtype=object),
        **fields,
    )


def test_a_simulated_stack_gets_all_its_columns(tmp_path):
    """From memory to disk: images, then metadata that name them by id; two microscopes become two groups."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(4, 3, 3, generator=generator))[0]
    ctf = CTF.uniform(4, defocus_A=15000.0)
    ctf = replace(
        ctf,
        beam_tilt_mrad=torch.tensor([[0.5, 1.0], [0.5, 1.0], [2.0, 3.0], [2.0, 3.0]]),
        odd_zernike=torch.tensor([[0.25, 1.0]]).expand(4, 2),
    )
    stack = _simulated(
        ctf=ctf,
        pose=Pose(q * torch.linalg.det(q)[:, None, None], torch.randn(4, 2, generator=generator)),
        half_set=torch.tensor([1, 2, 2, 1]),
        optics_group=torch.tensor([1, 1, 2, 2]),
        micrograph=np.array(["a", "a", "b", "0003"], dtype=object),
    )
    write_images(tmp_path / "particles.mrcs", stack)
    write_particles(tmp_path / "particles.star", stack)
    back = read_particles(tmp_path / "particles.star")
    assert torch.equal(back.images[:], stack.images[:])
    assert back.ids.tolist() == stack.ids.tolist()
    assert back.micrograph.tolist() == stack.micrograph.tolist()
    assert torch.equal(back.half_set, stack.half_set)
    assert torch.equal(back.optics_group, stack.optics_group)
    torch.testing.assert_close(back.pose.rotation, stack.pose.rotation, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.pose.shift_A, stack.pose.shift_A, rtol=0, atol=1e-4)
    for name in ("defocus_u_A", "voltage_kV", "beam_tilt_mrad", "odd_zernike", "scale"):
        torch.testing.assert_close(getattr(back.ctf, name), getattr(ctf, name), rtol=1e-6, atol=0)
    optics = read_star(tmp_path / "particles.star")["optics"]
    assert optics["rlnOpticsGroupName"].tolist() == ["opticsGroup1", "opticsGroup2"]
    for label in ("rlnVoltage", "rlnSphericalAberration", "rlnImagePixelSize", "rlnImageSize"):
        assert label in optics  # without these RELION refuses the file


def test_images_that_lie_in_no_file(tmp_path):
    """Metadata must name their images."""
    stack = replace(_simulated(), ids=np.array(["p", "q", "r", "s"], dtype=object))
    for name in ("a.star", "a.cs"):
        with pytest.raises(BadInput, match=r"lie in no file"):
            write_particles(tmp_path / name, stack)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("header_A", "severity"), [(2.0, None), (2.005, None), (0.0, None), (1.0, "warning"), (2.1, "error")]
)
def test_headers_that_disagree(star, project, header_A, severity):
    """The metadata stand; disagreement is an error for `check`, a header of 1 a warning, of 0 nothing."""
    _stack(project / "Extract" / "b" / "s.mrcs", 6, pixel_size_A=header_A)
    stack = read_particles(star)
    assert stack.pixel_size_A == 2.0
    findings = header_disagreements(stack)
    assert [f.severity for f in findings] == ([] if severity is None else [severity])
    for finding in findings:
        assert finding.file == str(project / "Extract" / "b" / "s.mrcs")
        assert finding.row == 1
        assert "two pixel sizes that disagree" in finding.message
    assert header_disagreements(_simulated()) == []


def test_duplicates_are_found(star):
    """The same image under two rows, whatever its id."""
    stack = read_particles(star)
    assert duplicate_images(stack) == []
    twice = stack.select(torch.tensor([0, 1, 2, 1]))
    (finding,) = duplicate_images(twice)
    assert (finding.severity, finding.row) == ("warning", 4)
    assert "row 4 repeats row 2" in finding.message
    assert duplicate_images(_simulated()) == []
    same = replace(_simulated(), ids=np.array(["1@a", "2@a", "1@a#2", "3@a"], dtype=object))
    assert duplicate_images(same)[0].row == 3


def test_ids_are_matched():
    """Exactly where they can be; else by index and base name, if that leaves no doubt."""
    available = np.array(["1@a/s.mrcs", "000002@a/s.mrcs", "000001@b/s.mrcs", "77"], dtype=object)
    assert match_ids(np.array(["77", "000001@b/s.mrcs"], dtype=object), available).tolist() == [3, 2]
    assert match_ids(np.array(["2@s.mrcs"], dtype=object), available).tolist() == [1]
    with pytest.raises(BadInput, match=r"found more than once"):
        match_ids(np.array(["1@s.mrcs"], dtype=object), available)
    with pytest.raises(BadInput, match=r"9@a/s.mrcs is not found among 4"):
        match_ids(np.array(["9@a/s.mrcs"], dtype=object), available)


def test_metadata_without_images(star, project, tmp_path):
    """Conversion where the stacks are not: tables come through, pixels do not."""
    away = tmp_path / "away.star"
    away.write_text(star.read_text())
    stack = read_particles(away, images="absent")
    assert stack.box == 8
    with pytest.raises(BadFile, match=r"read without its images"):
        stack.images[0:1]
    write_particles(tmp_path / "b.cs", stack)
    again = read_particles(tmp_path / "b.cs", images="absent")
    torch.testing.assert_close(again.pose.rotation, stack.pose.rotation, rtol=0, atol=1e-5)
    assert header_disagreements(stack) == []
    assert torch.equal(read_particles(star, images="if found").images[:], read_particles(star).images[:])
    assert torch.equal(read_particles(away, images="if found").pose.rotation, stack.pose.rotation)


def test_odd_boxes_cannot_go_to_relion(tmp_path):
    """They are written, and it is said."""
    _stack(tmp_path / "a.mrcs", box=7)
    stack = read_particles(tmp_path / "a.mrcs", pixel_size_A=2.0)
    with pytest.warns(OddBoxWarning, match=r"7 pixels, and RELION refuses"):
        write_particles(tmp_path / "a.star", stack)
    assert read_particles(tmp_path / "a.star").box == 7


def test_zstandard_is_read_or_its_remedy_named(tmp_path):
    """The one compression that Python did not always know."""
    (tmp_path / "a.mrcs.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(BadFile, match=r"pip install zstandard|broken|cannot be unpacked"):
        read_particles(tmp_path / "a.mrcs.zst", pixel_size_A=2.0)


def test_a_hundred_thousand_rows(tmp_path):
    """Read and written in seconds, a few hundred bytes of memory a row."""
    n = 100_000
    rng = np.random.default_rng(0)
    _stack(tmp_path / "s.mrcs", 1)
    stack = ParticleStack(
        images=MemoryImages(torch.zeros(1, 8, 8).expand(n, 8, 8)),
        pixel_size_A=2.0,
        ids=np.array([f"000001@s.mrcs#{i}" for i in range(n)], dtype=object),
        pose=Pose(
            torch.eye(3).expand(n, 3, 3), torch.from_numpy(rng.uniform(-9, 9, (n, 2)).astype(np.float32))
        ),
        ctf=CTF.uniform(n, defocus_A=15000.0),
        tables={},
    )
    stack.ids[:] = "000001@s.mrcs"
    write_particles(tmp_path / "a.star", stack)
    back = read_particles(tmp_path / "a.star")
    torch.testing.assert_close(back.pose.shift_A, stack.pose.shift_A, rtol=0, atol=1e-4)
    assert back.ids[-1] == f"000001@s.mrcs#{n}"
