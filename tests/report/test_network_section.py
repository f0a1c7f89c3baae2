"""Laws of the section about networks: chance is the volume of a ball of rotations, and shares are what the data say."""

import pytest
import torch

from cryorbit.data import Volume
from cryorbit.geometry.rotations import geodesic_angle, random_rotations
from cryorbit.report.data import NetworkReading, Reader, ReportData
from cryorbit.report.network_figures import chance_within
from cryorbit.report.network_section import network_section
from cryorbit.report.style import house_style


def reading(n=50, box=16):
    generator = torch.Generator().manual_seed(0)
    rotation = random_rotations(2 * 4 * 3, generator=generator).float().view(2, 4, 3, 3, 3)
    angle = torch.full((n, 8), 90.0)
    angle[: n // 2, 3] = 5.0  # half of the particles have a near hypothesis, the fourth
    refined = torch.cat((torch.full((n // 5,), 100.0), torch.full((n - n // 5,), 1.0)))
    return NetworkReading(
        readers=(
            Reader(
                name="reader",
                hypothesis_deg=angle,
                refined_deg=refined,
                facts={"evaluations": 44, "weights": 12345},
            ),
        ),
        moves=("a", "b", "c", "d"),
        moved_images=torch.randn(2, 4, box, box, generator=generator),
        moved_rotation=rotation,
        moved_probability=torch.rand(2, 4, 3, generator=generator),
        moved_centre_px=torch.zeros(2, 4, 2),
        moved_error=1e-7,
    )


def test_without_a_network_there_is_no_section():
    empty = ReportData(map=Volume(torch.zeros(8, 8, 8), 1.0), settings={})
    assert network_section(empty) is None


def test_shares_are_those_of_the_data():
    data = ReportData(map=Volume(torch.zeros(8, 8, 8), 1.0), settings={}, network=reading())
    with house_style():
        section = network_section(data)
    assert section is not None
    table = dict((row[0], row[1]) for row in section.table)
    assert "50%" in section.lead
    assert "80%" in section.lead
    assert table["Particles with one of eight hypotheses within 20°"] == "50%"
    assert table["Particles within 5° after refinement"] == "80%"
    assert table["Poses compared with an image in refinement"] == "44"
    assert "Training (s)" not in table
    assert all(p.addresses[0].startswith("data:image/") for row in section.rows for p in row.figures)


@pytest.mark.parametrize("limit", [20.0, 60.0, 120.0])
def test_chance_is_the_share_of_random_rotations(limit):
    n = 40_000
    rotation = random_rotations(n, generator=torch.Generator().manual_seed(1))
    angle = torch.rad2deg(geodesic_angle(rotation, torch.eye(3, dtype=rotation.dtype)))
    expected = chance_within(limit)
    five_sd = 5 * (expected * (1 - expected) / n) ** 0.5
    assert float((angle < limit).double().mean()) == pytest.approx(expected, abs=five_sd)
