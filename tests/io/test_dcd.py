from __future__ import annotations

import numpy as np
import pytest
import torch

from cryorbit.errors import BadFile
from cryorbit.io.dcd import read_dcd


def write_dcd(path, frames: np.ndarray, *, order: str, cell: bool, fixed: int = 0) -> None:
    """The records of a DCD file as their description has them; the header's count of frames is wrong on purpose."""

    def record(payload: bytes) -> bytes:
        length = np.array(len(payload), f"{order}u4").tobytes()
        return length + payload + length

    control = np.zeros(20, f"{order}i4")
    control[[0, 8, 10, 19]] = [500, fixed, cell, 24]
    parts = [record(b"CORD" + control.tobytes()), record(np.array(1, f"{order}i4").tobytes() + b" " * 80)]
    parts.append(record(np.array(frames.shape[1], f"{order}i4").tobytes()))
    for frame in frames:
        parts += [record(np.zeros(6, f"{order}f8").tobytes())] * cell
        parts += [record(frame[:, axis].astype(f"{order}f4").tobytes()) for axis in range(3)]
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("cell", [True, False])
def test_positions_come_back_as_written(tmp_path, order, cell):
    """Either byte order, with or without a unit cell; the frames are counted, not believed."""
    frames = np.random.default_rng(0).normal(size=(4, 7, 3)).astype(np.float32)
    write_dcd(tmp_path / "a.dcd", frames, order=order, cell=cell)
    assert torch.equal(read_dcd(tmp_path / "a.dcd"), torch.from_numpy(frames))


def test_a_frame_cut_short_is_left_out(tmp_path):
    """The whole frames before the cut are read; without any the file is refused."""
    frames = np.ones((3, 5, 3), np.float32)
    path = tmp_path / "a.dcd"
    write_dcd(path, frames, order="<", cell=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert read_dcd(path).shape == (2, 5, 3)
    path.write_bytes(whole[: 92 + 92 + 12 + 20])
    with pytest.raises(BadFile, match="no whole frame"):
        read_dcd(path)
    path.write_bytes(whole[:120])
    with pytest.raises(BadFile, match="cut short"):
        read_dcd(path)


def test_other_files_are_refused(tmp_path):
    """What is missing, of another format or with fixed atoms is refused by name."""
    path = tmp_path / "a.dcd"
    with pytest.raises(BadFile, match="no such file"):
        read_dcd(path)
    path.write_text("ATOM")
    with pytest.raises(BadFile, match="CORD"):
        read_dcd(path)
    write_dcd(path, np.ones((2, 5, 3), np.float32), order="<", cell=False, fixed=2)
    with pytest.raises(BadFile, match="fixed"):
        read_dcd(path)
