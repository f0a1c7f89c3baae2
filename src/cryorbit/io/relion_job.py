"""The files by which RELION and a job of its type External talk to each other.

RELION starts `EXECUTABLE --o External/job005/ --in_parts FILE ... --j N` in the project's folder and then looks for
files in the job's folder: RELION_JOB_EXIT_SUCCESS, _FAILURE or _ABORTED end the job, RELION_OUTPUT_NODES.star lists
what later jobs may take, and RELION itself puts RELION_JOB_ABORT_NOW there when the user asks to stop.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from cryorbit.errors import BadFile
from cryorbit.io.atomic import write_failure
from cryorbit.io.star import write_star

ABORT_NOW, OUTPUT_NODES = "RELION_JOB_ABORT_NOW", "RELION_OUTPUT_NODES.star"
Ending = Literal["SUCCESS", "FAILURE", "ABORTED"]
ENDINGS: tuple[Ending, ...] = ("SUCCESS", "FAILURE", "ABORTED")


@dataclass(frozen=True)
class NodeType:
    """What a file is to RELION: a number for 3.1, a label for 4 and one for 5."""

    number: int
    label4: str
    label5: str


PARTICLES = NodeType(3, "ParticlesData.star.relion", "ParticleGroupMetadata.star.relion")
MAP = NodeType(6, "DensityMap.mrc", "DensityMap.mrc")
HALF_MAP = NodeType(10, "DensityMap.mrc.halfmap", "DensityMap.mrc.halfmap")
MASK = NodeType(7, "Mask3D.mrc", "Mask3D.mrc")
LOCAL_RESOLUTION = NodeType(12, "Image3D.mrc.localresmap", "Image3D.mrc.localresmap")


@dataclass(frozen=True)
class RelionJob:
    """A job's folder, named as RELION named it: relative to the project's folder, where the job runs."""

    folder: Path

    def start(self) -> None:
        """Remove the marks of an earlier run in this folder, which RELION would take for ours.

        Raises
        ------
        BadFile
            If the folder cannot be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (*map(exit_file, ENDINGS), ABORT_NOW):
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise write_failure(self.folder, error) from error

    @property
    def abort_asked(self) -> bool:
        """Whether the user asked RELION to stop this job."""
        return (self.folder / ABORT_NOW).exists()

    def end(self, how: Ending) -> None:
        """Tell RELION that the job is over; an answered request to abort is taken away."""
        (self.folder / ABORT_NOW).unlink(missing_ok=True)
        (self.folder / exit_file(how)).touch()

    def write_nodes(self, nodes: Sequence[tuple[str, NodeType]], *, project: Path | None = None) -> None:
        """List the files that later jobs may take, by name within the job's folder; those not there are left out.

        Both the numbers of RELION 3.1 and the labels of 4 and later are written; each reads its own column.

        Parameters
        ----------
        project
            RELION's project folder; its pipeline file tells 4 from 5. The working folder if None.
        """
        label = "label5" if _is_version_5(Path.cwd() if project is None else project) else "label4"
        there = [(name, kind) for name, kind in nodes if (self.folder / name).exists()]
        table = pd.DataFrame(
            {
                "rlnPipeLineNodeName": [os.path.join(self.folder, name) for name, _ in there],
                "rlnPipeLineNodeType": [kind.number for _, kind in there],
                "rlnPipeLineNodeTypeLabel": [getattr(kind, label) for _, kind in there],
            }
        )
        write_star(self.folder / OUTPUT_NODES, {"output_nodes": table})


def exit_file(how: Ending) -> str:
    """Name of the mark of an ending.

    >>> exit_file("SUCCESS")
    'RELION_JOB_EXIT_SUCCESS'
    """
    return f"RELION_JOB_EXIT_{how}"


def _is_version_5(project: Path) -> bool:
    """Whether RELION 5 wrote the project's pipeline; False where there is none."""
    try:
        with open(project / "default_pipeline.star", encoding="utf-8", errors="replace") as file:
            return "# version 5" in file.read(400)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise BadFile(f"{project}: default_pipeline.star is unreadable ({error.strerror}).") from error
