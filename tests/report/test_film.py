from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from cryorbit.report.film import film, film_address

COLOUR = 10  # of 255: a palette of 128 colours for all frames


def pictures(count: int) -> list[np.ndarray]:
    """A disc that moves over a clear ground."""
    y, x = np.mgrid[:40, :50]
    made = []
    for k in range(count):
        inside = (x - 12 - 5 * k) ** 2 + (y - 20) ** 2 < 60
        made.append(
            np.concatenate([np.full((40, 50, 3), 0.2 + 0.1 * k), inside[..., None].astype(float)], -1)
        )
    return made


def frames_of(gif: bytes) -> list[np.ndarray]:
    found = []
    with Image.open(io.BytesIO(gif)) as image:
        for k in range(image.n_frames):
            image.seek(k)
            found.append(np.asarray(image.convert("RGB"), int))
    return found


def test_the_frames_are_the_pictures_there_and_back():
    """Frame k is picture k on white, to the palette; the ends come once a round."""
    given = pictures(5)
    frames = frames_of(film(given))
    assert len(frames) == 8
    for k, frame in enumerate(frames):
        picture = given[min(k, 8 - k)]
        wanted = 255 * (picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:])
        assert np.abs(frame - wanted).max() < COLOUR
        assert (frame[picture[..., 3] == 0] == 255).all()


def test_two_pictures_are_a_film_too():
    assert len(frames_of(film(pictures(2)))) == 2


def test_the_address_holds_the_film():
    gif = film(pictures(3))
    kind, _, coded = film_address(gif).partition(",")
    assert kind == "data:image/gif;base64"
    assert base64.b64decode(coded) == gif
