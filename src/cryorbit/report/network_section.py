"""The section about equivariant encoders that know a run's map: how they read images without a search."""

from __future__ import annotations

import torch

from cryorbit.report import network_figures
from cryorbit.report.data import NetworkReading, ReportData
from cryorbit.report.page import Picture, Row, Section, text_of

NEAR_DEG, RIGHT_DEG = 20.0, 5.0
_WORDS = {
    "weights": "Trained weights",
    "training_images": "Fresh projections it was trained on",
    "training_seconds": "Training (s)",
    "images_per_second": "Images per second, encoder alone",
    "evaluations": "Poses compared with an image in refinement",
    "evaluations_search": "Poses compared with an image by a full search",
    "near": f"Particles with one of eight hypotheses within {NEAR_DEG:.0f}°",
    "refined": f"Particles within {RIGHT_DEG:.0f}° after refinement",
}


def network_section(data: ReportData) -> Section | None:
    """What equivariant encoders say of the run's particles, if any were asked."""
    found = data.network
    if found is None:
        return None
    columns = [dict(r.facts) | {"near": f"{_near(found, i):.0%}", "refined": f"{_refined(found, i):.0%}"}
               for i, r in enumerate(found.readers)]  # fmt: skip
    table = tuple(
        (word, *(text_of(c.get(key)) for c in columns))
        for key, word in _WORDS.items()
        if any(key in c for c in columns)
    )
    head = ("", *(r.name for r in found.readers))
    return Section("network", "Equivariant networks read the poses", _lead(found), _rows(found), table, head)


def _near(found: NetworkReading, reader: int) -> float:
    return float((found.readers[reader].hypothesis_deg.amin(1) <= NEAR_DEG).double().mean())


def _refined(found: NetworkReading, reader: int) -> float:
    return float((found.readers[reader].refined_deg <= RIGHT_DEG).double().mean())


def _lead(found: NetworkReading) -> str:
    first = found.readers[0].name
    return (
        "Encoders give each image a distribution over all orientations in one pass. Here they know the map that was found, "
        f"and read images of the run. The {first} has one of its first eight hypotheses within {NEAR_DEG:.0f}° of the pose "
        f"that the run found for {_near(found, 0):.0%} of them, and refinement of these brings {_refined(found, 0):.0%} "
        f"within {RIGHT_DEG:.0f}°."
    )


def _rows(found: NetworkReading) -> tuple[Row, ...]:
    moved = Picture(
        title="Turn the image, and the answer turns",
        addresses=(
            network_figures.moved_figure(
                found.moved_images,
                found.moved_rotation,
                found.moved_probability,
                found.moved_centre_px,
                titles=found.moves,
            ),
        ),
        caption="The particle's x, y and z axes (orange, green, blue) as the hypotheses have them, as strong as they are "
        "probable. That they move with the image is built in, not learned: the largest difference between the probabilities "
        f"for a moved image and the moved probabilities is {found.moved_error:.1g}, over all eight turns and reflections.",
        plot=False,
    )
    counted = Picture(
        title="How many hypotheses hold the pose",
        addresses=(network_figures.hypotheses_figure(found.readers),),
        caption="The answer is a distribution: where an encoder doubts, the right pose is often second or third.",
    )
    agreed = Picture(
        title="Against the poses of the run",
        addresses=(
            network_figures.agreement_figure(found.readers, generator=torch.Generator().manual_seed(0)),
        ),
        caption="Thick: the best of eight hypotheses after a local search. Thin: the first hypothesis as it is. A "
        "network that is trained so shortly knows little of noisy images; `cryorbit poses train` takes longer.",
    )
    return Row((moved,)), Row((counted, agreed), "two")
