"""Laws of cryoSPARC's group files, and of tables with expanded particles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from cryorbit.data.expansion import expand_by_symmetry, expansion_columns
from cryorbit.errors import BadFile
from cryorbit.io.cs_file import read_cs, write_cs
from cryorbit.io.csg import tables_of_csg
from cryorbit.io.findings import duplicate_images, image_keys
from cryorbit.io.particles import read_particles, write_particles


def test_a_group_names_every_slot_of_its_table(star, tmp_path):
    """One result per slot of the table beside it, typed and counted; the pair reads as the stack that was written."""
    stack = read_particles(star)
    write_particles(tmp_path / "out.csg", stack)
    group = yaml.safe_load((tmp_path / "out.csg").read_text())
    fields = read_cs(tmp_path / "out.cs").dtype.names
    assert (
        set(group["results"])
        == {f.split("/")[0] for f in fields} - {"uid"}
        >= {"blob", "ctf", "alignments3D"}
    )
    for slot, result in group["results"].items():
        assert result == {"metafile": ">out.cs", "num_items": len(stack), "type": f"particle.{slot}"}
    assert group["group"]["type"] == "particle"
    assert {"created", "version"} <= group.keys()
    again = read_particles(tmp_path / "out.csg")
    torch.testing.assert_close(again.pose.rotation, stack.pose.rotation, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.pose.shift_A, stack.pose.shift_A, rtol=0, atol=1e-4)
    torch.testing.assert_close(again.images[torch.arange(6)], stack.images[torch.arange(6)])


def test_slots_in_several_files_are_joined(star, tmp_path):
    """A group whose CTF lies in a passthrough file of any name, rows in another order."""
    stack = read_particles(star)
    write_particles(tmp_path / "out.csg", stack)
    whole = read_cs(tmp_path / "out.cs")
    ctf = [f for f in whole.dtype.names if f.startswith("ctf/")]
    write_cs(tmp_path / "out.cs", np.ascontiguousarray(whole[[f for f in whole.dtype.names if f not in ctf]]))
    write_cs(tmp_path / "rest.cs", np.ascontiguousarray(whole[["uid", *ctf]][::-1]))
    group = yaml.safe_load((tmp_path / "out.csg").read_text())
    group["results"]["ctf"]["metafile"] = ">rest.cs"
    (tmp_path / "out.csg").write_text(yaml.safe_dump(group))
    assert tables_of_csg(tmp_path / "out.csg") == (tmp_path / "out.cs", [tmp_path / "rest.cs"])
    again = read_particles(tmp_path / "out.csg")
    torch.testing.assert_close(again.ctf.defocus_u_A, stack.ctf.defocus_u_A)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2", "not a readable"),
        ("results: 5", "not a readable"),
        ("results: {ctf: {metafile: '>a.cs'}}", "no images"),
        ("results: {blob: {metafile: '>absent.cs'}}", "is not there"),
    ],
)
def test_broken_groups(tmp_path, text, reason):
    """One line each, naming the file."""
    path = tmp_path / "a.csg"
    path.write_text(text)
    with pytest.raises(BadFile, match=reason) as error:
        read_particles(path)
    assert "a.csg" in str(error.value)


@pytest.mark.parametrize("suffix", [".star", ".cs"])
def test_expanded_particles_are_recognised_and_have_uids_of_their_own(star, tmp_path, suffix):
    """STAR repeats the image name, cryoSPARC gets a new uid per copy and remembers the old one."""
    stack = read_particles(star)
    if suffix == ".cs":
        write_particles(tmp_path / "plain.cs", stack)
        stack = read_particles(tmp_path / "plain.cs")
    path = tmp_path / f"wide{suffix}"
    wide = expand_by_symmetry(stack, "D2")
    write_particles(path, wide, extra_columns=expansion_columns(stack, 4))
    again = read_particles(path)
    assert len(set(again.ids.tolist())) == len(again) == 24
    assert len(set(image_keys(again).tolist())) == 6
    if suffix == ".cs":
        table = read_cs(path)
        assert (
            table["sym_expand/src_uid"].tolist()
            == np.repeat(read_cs(tmp_path / "plain.cs")["uid"], 4).tolist()
        )
        assert table["uid"][::4].tolist() == read_cs(tmp_path / "plain.cs")["uid"].tolist()
    (finding,) = duplicate_images(again)
    assert "expanded by the symmetry D2" in finding.message
    assert "listed 4 times" in finding.message


def test_an_expansion_by_another_program_is_recognised(star, tmp_path):
    """Without our columns the repeated image names and the poses tell."""
    wide = expand_by_symmetry(read_particles(star), "C3")
    write_particles(tmp_path / "wide.star", wide)
    (finding,) = duplicate_images(read_particles(tmp_path / "wide.star"))
    assert "expanded by the symmetry C3" in finding.message
