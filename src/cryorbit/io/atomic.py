"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from cryorbit.errors import BadFile

_REMEDY = {
    errno.ENOSPC: "The disk is full: free some space or write elsewhere.",
    errno.EDQUOT: "Your disk quota is used up: free some space or write elsewhere.",
    errno.EFBIG: "The file system allows no file of that size: write elsewhere.",
    errno.EACCES: "You may not write there: choose another place.",
    errno.EROFS: "That file system is read-only: write elsewhere.",
    errno.ENOENT: "The folder does not exist: create it first.",
    errno.ENOTDIR: "Part of the path is not a folder: choose another place.",
    errno.EISDIR: "A folder has that name: choose another name.",
}


def write_failure(path: str | os.PathLike[str], error: OSError) -> BadFile:
    """The one-line error of a write that failed: file, reason, remedy; nothing was left behind."""
    remedy = _REMEDY.get(error.errno or 0, "Check the disk and try again.")
    reason = error.strerror or str(error)
    return BadFile(
        f"{os.fspath(path)}: could not be written ({reason}). {remedy} Nothing was left half-written."
    )


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends well.

    The file is flushed to disk and renamed over `path` in one step, so that a reader sees the old file or
    the new one. If the block raises, the temporary file is removed and `path` keeps what it had.

    Raises
    ------
    BadFile
        For any `OSError` on the way: a full disk, a missing folder, no permission.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [p.name for p in folder.iterdir()]
    ['a.txt']
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        with NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.name}.", suffix=".part", delete=False
        ) as made:
            temporary = Path(made.name)
        os.chmod(temporary, 0o666 & ~_umask())
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, in place of what was there.

    If the block raises, the temporary folder is removed and `path` keeps what it had; if the process is killed, the
    temporary folder stays, hidden, and the next call for the same path removes it. Relative links from inside are those of
    `path`, since both lie in one folder. The working directory stays the folder it is, and is emptied and filled.

    Raises
    ------
    BadFile
        If the folder cannot be made or put in place.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "made"
    >>> with atomic_folder(target) as temporary:
    ...     _ = (temporary / "a.txt").write_text("whole")
    >>> [p.name for p in target.iterdir()]
    ['a.txt']
    """
    target = Path(path).resolve()  # "." has no name to put another beside
    temporary, old = (target.with_name(f".{target.name}.{word}") for word in ("unfinished", "replaced"))
    try:
        if old.exists() and not target.exists():  # killed between the two renames below
            os.replace(old, target)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        if target.exists() and os.path.samefile(target, os.curdir):
            _refill(target, temporary, old)
        else:
            if target.exists():
                os.replace(target, old)
            os.replace(temporary, target)
        shutil.rmtree(old, ignore_errors=True)
        _flush_folder(target.parent)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not target.exists():
            os.replace(old, target)


def _refill(target: Path, temporary: Path, old: Path) -> None:
    """Put the entries of `temporary` in the place of those of `target`, which go to `old`; all go back if one cannot.

    A rename of the whole would leave the shell that stands in `target` in a folder that is gone.
    """
    old.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for source, to in ((target, old), (temporary, target)):
            for entry in list(source.iterdir()):
                os.replace(entry, to / entry.name)
                moved.append((entry, to / entry.name))
    except OSError:
        for before, now in reversed(moved):
            os.replace(now, before)
        raise


def _umask() -> int:
    """The process's file mode mask, read where the system shows it without setting it."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable; file systems that cannot are left in peace."""
    try:
        _flush_to_disk(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES, errno.EBADF, errno.EISDIR):
            raise
