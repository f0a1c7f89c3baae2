"""The protocol of RELION's External jobs, in a folder as RELION makes it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import tyro

from cryorbit.cli import relion_external
from cryorbit.cli.relion_external import parse_relion, verb_arguments
from cryorbit.errors import BadInput
from cryorbit.io.star import read_star

JOB = "External/job005/"


@pytest.fixture
def project(simulated, tmp_path, monkeypatch) -> Path:
    """A project folder, in which RELION starts its jobs, with posed particles and a job folder that it made."""
    (tmp_path / "Import").mkdir()
    shutil.copy(simulated / "truth.star", tmp_path / "Import" / "particles.star")
    shutil.copy(simulated / "particles.mrcs", tmp_path / "Import")
    (tmp_path / JOB).mkdir(parents=True)
    for name in ("note.txt", "run.job", "run.out", "run.err"):
        (tmp_path / JOB / name).touch()
    monkeypatch.chdir(tmp_path)
    # Pages are looked at elsewhere, and take longer to draw than these jobs take.
    monkeypatch.setattr("cryorbit.cli.report.rebuild_report", lambda folder, *, stack=None: None)
    return tmp_path


def marks() -> set[str]:
    """What RELION would see in the job's folder."""
    return {path.name.removeprefix("RELION_JOB_") for path in Path(JOB).glob("RELION_JOB_*")}


def test_a_job_that_succeeds(project, shell):
    """SUCCESS, the nodes by their names from the project's folder, progress on stdout, nothing on stderr."""
    words = ("--o", JOB, "--in_parts", "Import/particles.star", "--symmetry", "C2", "--j", 1)
    code, out, error = shell("relion-external", "reconstruct", *words, "--pipeline_control", JOB)
    assert code == 0, error
    assert marks() == {"EXIT_SUCCESS"}
    nodes = read_star(Path(JOB) / "RELION_OUTPUT_NODES.star")["output_nodes"]
    assert nodes["rlnPipeLineNodeName"].tolist() == [f"{JOB}{n}.mrc" for n in ("map", "half1", "half2")]
    assert nodes["rlnPipeLineNodeType"].astype(int).tolist() == [6, 10, 10]
    assert nodes["rlnPipeLineNodeTypeLabel"].tolist() == ["DensityMap.mrc"] + ["DensityMap.mrc.halfmap"] * 2
    assert error == ""
    assert "at FSC 0.143" in out
    settings = (Path(JOB) / "settings.yaml").read_text()
    assert "symmetry: C2" in settings
    assert "threads: 1" in settings


def test_half_maps_of_a_job_are_postprocessed_by_another(project, shell):
    """A half map as 3D reference finds its other half; sharpened map, mask and local resolution are nodes."""
    first = ("--o", JOB, "--in_parts", "Import/particles.star", "--j", 1)
    assert shell("relion-external", "reconstruct", *first)[0] == 0
    second = ("--o", "External/job006/", "--in_3dref", f"{JOB}half2.mrc", "--no-report", "--b-factor-A2", "0")
    code, _, error = shell("relion-external", "postprocess", *second, "--j", 1)
    assert code == 0, error
    nodes = read_star(Path("External/job006/RELION_OUTPUT_NODES.star"))["output_nodes"]
    names = {Path(n).name for n in nodes["rlnPipeLineNodeName"]}
    assert names == {"postprocess.mrc", "mask.mrc", "local_resolution.mrc"}


def test_a_job_that_fails(project, shell):
    """FAILURE, the reason in one line on stderr, and an old SUCCESS gone."""
    (Path(JOB) / "RELION_JOB_EXIT_SUCCESS").touch()
    code, _, error = shell("relion-external", "reconstruct", "--o", JOB, "--in_parts", "absent.star")
    assert code == 2
    assert marks() == {"EXIT_FAILURE"}
    assert error.startswith("error: ")
    assert "absent.star: there is no such file" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("version", [3, 5])
def test_labels_are_those_of_the_projects_relion(project, shell, version):
    """RELION 5 calls particles by another label than 4; the pipeline file tells which it is."""
    (project / "default_pipeline.star").write_text(f"\n# version {version}0001\n\ndata_pipeline_general\n")
    shutil.copy("Import/particles.star", f"{JOB}particles.star")
    words = ("--o", JOB, "--in_parts", "Import/particles.star", "--j", 1)
    assert shell("relion-external", "reconstruct", *words)[0] == 0
    nodes = read_star(Path(JOB) / "RELION_OUTPUT_NODES.star")["output_nodes"]
    label = {3: "ParticlesData.star.relion", 5: "ParticleGroupMetadata.star.relion"}[version]
    assert nodes["rlnPipeLineNodeTypeLabel"][0] == label


@dataclass(frozen=True, kw_only=True)
class WaitingSettings:
    """Options of a verb that waits."""

    particles: tyro.conf.Positional[Path]
    """Not read."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Not used."""
    broken: bool = False
    """Whether it ends in an error that nobody foresaw."""


@pytest.fixture
def waiting(monkeypatch):
    """A verb that runs until it is stopped."""

    def run(settings: WaitingSettings) -> int:
        if settings.broken:
            raise ZeroDivisionError("unforeseen")
        (Path(JOB) / "RELION_JOB_ABORT_NOW").touch()
        for _ in range(1000):
            time.sleep(0.01)
        raise AssertionError("was not stopped within ten seconds")

    module = ModuleType("cryorbit.cli.waiting_job")
    module.__dict__.update(Settings=WaitingSettings, run=run)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(relion_external.MODULES, "wait", "waiting_job")
    monkeypatch.setattr(relion_external, "POLL_S", 0.02)


def test_an_abort_from_the_gui_ends_the_job(project, shell, waiting):
    """ABORTED, the request taken away, exit code of SIGTERM, and the handler of signals as it was."""
    import signal

    before = signal.getsignal(signal.SIGTERM)
    code, _, _ = shell("relion-external", "wait", "--o", JOB, "--in_parts", "x.star")
    assert code == 143
    assert marks() == {"EXIT_ABORTED"}
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_unforeseen_error_is_a_failure_too(project, shell, waiting):
    """The traceback goes on, and RELION is told."""
    with pytest.raises(ZeroDivisionError):
        shell("relion-external", "wait", "--o", JOB, "--in_parts", "x.star", "--broken")
    assert marks() == {"EXIT_FAILURE"}


def test_a_run_that_saves_itself_is_stopped_and_continued(project, shell, monkeypatch):
    """An abort during ab initio leaves a checkpoint; Continue, the same command, goes on and succeeds."""
    monkeypatch.setattr(relion_external, "POLL_S", 0.05)
    words = [
        "--o",
        JOB,
        "--in_parts",
        "Import/particles.star",
        "--j",
        1,
        "--starts",
        2,
        "--batches",
        8,
        "--rounds",
        1,
    ]
    from cryorbit.cli.run_folder import RunFolder

    follow = RunFolder.follow

    def ask_soon(self, records, *, checkpoint_every_s):
        def told():
            for i, record in enumerate(records):
                if i == 2:
                    (Path(JOB) / "RELION_JOB_ABORT_NOW").touch()
                    time.sleep(1.0)
                yield record

        return follow(self, told(), checkpoint_every_s=checkpoint_every_s)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "follow", ask_soon)
        code, _, error = shell("relion-external", "abinitio", *words)
    assert code == 143, error
    assert marks() == {"EXIT_ABORTED"}
    assert (Path(JOB) / "checkpoint.safetensors").exists()
    code, out, error = shell("relion-external", "abinitio", *words)
    assert code == 0, error
    assert marks() == {"EXIT_SUCCESS"}
    assert "Resuming" in out
    nodes = read_star(Path(JOB) / "RELION_OUTPUT_NODES.star")["output_nodes"]
    assert nodes["rlnPipeLineNodeName"][0] == f"{JOB}particles.star"
    names = read_star(Path(JOB) / "particles.star")["particles"]["rlnImageName"]
    assert names[0].endswith("particles.mrcs")
    assert os.path.exists(Path("Import") / names[0].split("@")[1].split("/")[-1])


def test_relions_options_are_sorted_from_the_verbs():
    """Inputs that a verb has no use for are left out, its own options pass as they are."""
    from cryorbit.cli import reconstruct

    asked = parse_relion(["--in_parts", "p.star", "--in_mask", "m.mrc", "--no-ctf", "--o", JOB, "--j", "3"])
    words = verb_arguments("reconstruct", reconstruct.Settings, asked)
    assert words == ["p.star", "-o", JOB.rstrip("/"), "--threads", "3", "--no-ctf"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--in_parts", "p.star"], "no --o"),
        (["--o"], "--o has no value"),
        (["--o", "--j", "1"], "--o has no value"),
        (["--o", JOB, "--j", "many"], "wanted a number"),
    ],
)
def test_commands_that_relion_would_not_give(words, reason):
    """Refused with what is missing."""
    with pytest.raises(BadInput, match=reason):
        parse_relion(words)


def test_inputs_that_a_verb_needs(project, shell):
    """No particles, or a map that is no half map: FAILURE and a remedy."""
    for verb, words, reason in (
        ("reconstruct", (), "no --in_parts"),
        ("postprocess", (), "no --in_3dref"),
        ("postprocess", ("--in_3dref", "map.mrc"), "neither half1 nor half2"),
    ):
        code, _, error = shell("relion-external", verb, "--o", JOB, *words)
        assert code == 2
        assert reason in error
        assert marks() == {"EXIT_FAILURE"}
    assert shell("relion-external", "guess")[0] == 2


def test_a_refinement_gets_its_reference_and_is_resumed(project):
    """The 3D reference is --map; in a folder where a run stands, the same command goes on with it."""
    from cryorbit.cli import refine

    asked = parse_relion(["--o", JOB, "--in_parts", "p.star", "--in_3dref", "m.mrc", "--symmetry", "O"])
    expected = ["p.star", "--map", "m.mrc", "-o", JOB.rstrip("/")]
    assert verb_arguments("refine", refine.Settings, asked) == [*expected, "--symmetry", "O"]
    (Path(JOB) / "settings.yaml").touch()
    assert verb_arguments("refine", refine.Settings, asked) == [*expected, "--resume", "--symmetry", "O"]
