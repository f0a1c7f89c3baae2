"""Laws of the demo's panel about networks: what is kept comes back, of few small images too, and fits the report."""

import pytest
import torch

from cryorbit.cli import network_panel
from cryorbit.cli.network_panel import MOVES, NETWORK, SHOWN, TOP, of_network, read_by_network
from cryorbit.data import MemoryImages, ParticleStack, Volume
from cryorbit.errors import BadFile
from cryorbit.io.checkpoint import save_state
from cryorbit.physics.simulate import SimulationSettings, simulate
from cryorbit.report.data import ReportData
from cryorbit.report.network_section import network_section
from cryorbit.report.style import house_style
from physics_models import GaussianBlobs

N = 40
EXACT = 1e-4
"""Probabilities, float32, through rings and FFTs."""


@pytest.mark.parametrize("box", [24, 27])
def test_the_panel_of_a_small_stack(box, tmp_path, monkeypatch):
    monkeypatch.setattr(network_panel, "TRAINING_IMAGES", 32)
    values = GaussianBlobs.random(14, radius_px=6.5, sigma_px=1.2, seed=5).values(box).float()
    volume = Volume(values, 8.0)
    how = SimulationSettings(
        n_particles=N, box=box, pixel_size_A=8.0, snr=1.0, shift_sd_A=6.0, seed=3, b_factor_A2=0.0
    )
    made = simulate(volume, how)
    images = MemoryImages(made.stack.images[torch.arange(N)])
    stack = ParticleStack(
        images=images, pixel_size_A=8.0, ids=made.stack.ids, ctf=made.stack.ctf, pose=made.truth
    )
    told = []
    read_by_network(tmp_path, stack, volume, seed=0, tell=told.append)
    assert told[-1].fraction == 1.0
    found = of_network(tmp_path)
    assert found is not None
    assert [r.name for r in found.readers] == ["exact slice encoder", "trained D4 encoder"]
    assert all(r.hypothesis_deg.shape == (N, TOP) for r in found.readers)
    assert found.moved_images.shape[:2] == (SHOWN, len(MOVES))
    assert found.moved_error < EXACT
    # Against the true poses the exact encoder is right for most, the one trained on 32 images is not.
    near = [float((r.hypothesis_deg.amin(1) < 20).double().mean()) for r in found.readers]
    assert near[0] > 0.8 > near[1]
    data = ReportData(map=volume, settings={}, network=found)
    with house_style():
        section = network_section(data)
    assert section is not None
    assert f"{near[0]:.0%}" in section.lead


def test_no_panel_and_another_file(tmp_path):
    assert of_network(tmp_path) is None
    save_state(tmp_path / NETWORK, {"x": torch.zeros(1)}, {})
    with pytest.raises(BadFile, match=NETWORK):
        of_network(tmp_path)
