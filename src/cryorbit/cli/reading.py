"""Particles as the shell reads them: which options there are, and what is refused before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cryorbit.errors import BadFile, BadInput

if TYPE_CHECKING:
    import torch

    from cryorbit.data import ParticleStack
    from cryorbit.inference.ranks import Ranks

ParticlesFile = Annotated[Path, tyro.conf.arg(metavar="PARTICLES")]
"""A .star, .cs, .mrcs or .txt file, or a RELION or cryoSPARC job folder."""

FEWEST_PARTICLES = 300
"""Below this, ab initio is refused: a map from fewer images cannot be told from noise fitted to itself."""

CHUNK_BYTES = 16 * 2**20
"""Images read at a time; memory of up to 32 MB is used again by glibc, more is given back and paid for page by page."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read the particles"""

    origins: Literal["auto", "angstrom", "pixels"] = "auto"
    """Which origin columns to believe where a STAR file has both, or only pixels beside an optics table."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that image paths are relative to, if not the usual ones."""
    pixel_size_A: float | None = None
    """Pixel size of the images, where the file does not say."""
    pose_pkl: Annotated[Path | None, tyro.conf.arg(metavar="POSE.pkl")] = None
    """cryoDRGN poses for an .mrcs or .txt file."""
    ctf_pkl: Annotated[Path | None, tyro.conf.arg(metavar="CTF.pkl")] = None
    """cryoDRGN CTF parameters for an .mrcs or .txt file."""

    def absolute(self) -> ReadOptions:
        """The same with absolute paths, so that settings.yaml works from any folder."""
        return replace(
            self, **{name: absolute(getattr(self, name)) for name in ("data_dir", "pose_pkl", "ctf_pkl")}
        )


@dataclass(frozen=True, kw_only=True)
class ImageOptions(ReadOptions):
    """How to read the particles and their images"""

    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Keep a half-precision copy of the images in this folder, made once: for stacks that are many, compressed or on a
    slow disk."""

    def absolute(self) -> ImageOptions:
        """The same with absolute paths, so that settings.yaml works from any folder."""
        return replace(self, **(vars(super().absolute()) | {"cache": absolute(self.cache)}))


def absolute(path: Path | None) -> Path | None:
    """The path from the root, None for None."""
    return None if path is None else path.absolute()


def read(
    path: Path, options: ReadOptions, *, images: Literal["present", "absent", "if found"] = "present"
) -> ParticleStack:
    """The particles of a file or job folder; "absent" reads the metadata without looking for the stacks, "if found"
    opens them where all are there.

    Raises
    ------
    BadFile, BadInput
        If they cannot be read.
    """
    from cryorbit.io.particles import read_particles

    return read_particles(
        path,
        data_dir=options.data_dir,
        origins=options.origins,
        poses=options.pose_pkl,
        ctf=options.ctf_pkl,
        pixel_size_A=options.pixel_size_A,
        images=images,
    )


def read_images(path: Path, options: ImageOptions, ranks: Ranks | None = None) -> ParticleStack:
    """As `read`, with the images from the cache if one is asked for: made now unless it is there and still right.

    Of several processes (`ranks`) the first makes it.

    Raises
    ------
    BadFile, BadInput
        If they cannot be read, or the cache cannot be written.
    """
    from cryorbit.cli.progress import say
    from cryorbit.io.image_cache import ImageCache

    stack = read(path, options)
    if options.cache is None:
        return stack
    cache = ImageCache(options.cache, stack.images)
    if ranks is None or ranks.first:
        reason = cache.why_not()
        if reason is not None:
            say(f"{options.cache}: copying {len(stack)} images, {cache.bytes / 1e9:.2f} GB: {reason}.")
            cache.build()
    if ranks is not None:
        ranks.any(False)  # the others wait until it is there
    return replace(stack, images=cache.open())


def with_ctf_or_waived(stack: ParticleStack, *, ctf: bool) -> ParticleStack:
    """The stack, without its CTF if that was asked for.

    Raises
    ------
    BadInput
        If there is no particle, or no CTF and it was not waived.
    """
    if len(stack) == 0:
        raise BadInput(f"{stack.source}: no particles in it. Give a file that has some.")
    if ctf and stack.ctf is None:
        raise BadInput(
            f"{stack.source}: no CTF parameters, without which maps and poses would be wrong. Estimate them "
            "(CTFFIND, Gctf, cryoSPARC) and extract again, or give --no-ctf if the images need none."
        )
    return stack if ctf else replace(stack, ctf=None)


def refuse_for_abinitio(stack: ParticleStack, *, ctf: bool) -> None:
    """Raise, with the remedy, if no map can be expected of these particles.

    Raises
    ------
    BadInput
        If there are too few, or there is no CTF and none was waived.
    """
    with_ctf_or_waived(stack, ctf=ctf)
    if len(stack) < FEWEST_PARTICLES:
        raise BadInput(
            f"{stack.source}: {len(stack)} particles are too few to find a map from nothing, wanted "
            f"{FEWEST_PARTICLES} or more. Extract more, or use `cryorbit reconstruct` if poses are known."
        )


def chunks(n: int, box: int) -> list[slice]:
    """Slices that cover n images, each of about 16 MB of float32.

    >>> chunks(5, 4096)
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    step = max(1, CHUNK_BYTES // (4 * box * box))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def refuse_bad_images(stack: ParticleStack, ranks: Ranks | None = None) -> None:
    """Read every image once and raise at the first that is blank; readers themselves refuse NaN.

    Several processes (`ranks`) look through the images together.

    Raises
    ------
    BadFile
        Naming the row (from 1) and the image.
    """
    import torch

    parts = chunks(len(stack), stack.box)
    for part in parts if ranks is None else parts[ranks.rank :: ranks.size]:
        low, high = torch.aminmax(stack.images[part].flatten(1), dim=1)
        blank = torch.nonzero(low == high)
        if len(blank):
            row = part.start + int(blank[0, 0])
            raise BadFile(f"{stack.source}: row {row + 1}: image {stack.ids[row]} is blank. Drop that row.")


def spread_rows(n: int, count: int) -> torch.Tensor:
    """`count` rows spread evenly over n.

    >>> spread_rows(10, 3).tolist()
    [0, 4, 9]
    """
    import torch

    return torch.linspace(0, n - 1, min(n, count)).long()
