"""Films: pictures one after the other, in a file that every browser plays."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_FRAME_MS = 110


def film(pictures: Sequence[np.ndarray]) -> bytes:
    """A GIF that goes through pictures and back, for ever; every browser plays it."""
    frames = [_on_white(p) for p in pictures]
    frames = frames + frames[-2:0:-1]
    # One palette for all frames: colours that change from frame to frame would flicker.
    wall = Image.new("RGB", (frames[0].width, frames[0].height * len(pictures)))
    for k, frame in enumerate(frames[: len(pictures)]):
        wall.paste(frame, (0, k * frame.height))
    palette = _palette(wall)
    drawn = [_painted(frame, palette) for frame in frames]
    buffer = io.BytesIO()
    drawn[0].save(
        buffer, "GIF", save_all=True, append_images=drawn[1:], duration=_FRAME_MS, loop=0, optimize=False
    )
    return buffer.getvalue()


def _painted(frame: Image.Image, palette: Image.Image) -> Image.Image:
    """A frame in the palette's colours; white stays white, which the library's nearest colour is not quite."""
    index = np.array(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    index[(np.asarray(frame) == 255).all(-1)] = 255
    image = Image.frombytes("P", frame.size, index.tobytes())
    image.putpalette(palette.getpalette() or [])
    return image


def _palette(wall: Image.Image) -> Image.Image:
    """Colours that suit a picture, and white itself: the page's own."""
    found = (wall.quantize(127).getpalette() or [])[: 3 * 127]
    image = Image.new("P", (1, 1))
    image.putpalette(found + [255] * (768 - len(found)))
    return image


def _on_white(rgba: np.ndarray) -> Image.Image:
    alpha = rgba[..., 3:]
    flat = np.clip(rgba[..., :3] * alpha + 1 - alpha, 0, 1)
    return Image.fromarray((255 * flat + 0.5).astype(np.uint8))


def film_address(gif: bytes) -> str:
    """A film as a data: address."""
    return "data:image/gif;base64," + base64.b64encode(gif).decode("ascii")
