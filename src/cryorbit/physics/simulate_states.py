"""Simulated stacks of a particle that has several states, with the state of every image known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import CTF, Atoms, MemoryImages, ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.physics.formation import form_images
from cryorbit.physics.project import prepare
from cryorbit.physics.simulate import CHUNK, add_noise, signal_variance, volume_of
from cryorbit.physics.stack_plan import SimulationSettings, StackPlan, plan_stack


@dataclass(frozen=True, eq=False)
class StateSimulation:
    """A simulated stack of several states and the truth behind it.

    Parameters
    ----------
    stack
        Images in memory, CTF, half sets, micrographs, optics groups, and the true poses.
    state
        Which state each image shows, shape (n,).
    maps
        The map of every state on the grid of the images, in their grey values.
    sigma
        Standard deviation of the noise per pixel.
    """

    stack: ParticleStack
    state: Int[Tensor, "n"]
    maps: Float[Tensor, "k box box box"]
    sigma: float
    settings: SimulationSettings = field(default_factory=SimulationSettings)

    @property
    def truth(self) -> Pose:
        """The poses that made the images."""
        assert self.stack.pose is not None
        return self.stack.pose

    def volume(self, state: int) -> Volume:
        """The map of one state."""
        return Volume(self.maps[state], self.settings.pixel_size_A)


def simulate_states(
    models: Sequence[Atoms] | Sequence[Volume],
    state: Int[Tensor, "n"],
    settings: SimulationSettings,
    *,
    ctf_table: CTF | None = None,
) -> StateSimulation:
    """A stack whose image i shows state `state[i]`, made as `simulate` makes its images.

    Poses, CTF, half sets and noise are those that `simulate` draws from the same settings: a set of one state is the
    same stack. The noise variance is the mean signal variance of the set over the SNR, so all states share one noise.

    Parameters
    ----------
    models
        The states, all in one frame: atoms (moved together by `common_frame`) or maps (resampled to the box and pixel
        size, else left in place).
    state
        Shape (n,), n = `settings.n_particles`, 0 to len(models) - 1.
    ctf_table
        As for `simulate`.

    Raises
    ------
    BadInput
        If a state does not exist, their number is not that of the images, or atoms leave the box.
    """
    _check(len(models), state, settings)
    plan = plan_stack(settings, ctf_table=ctf_table)
    maps = state_maps(models, settings)
    images = MemoryImages(_clean_images(maps, state, plan, settings))
    sigma = (signal_variance(images) / settings.snr) ** 0.5
    for rows in torch.arange(len(state)).split(CHUNK):
        part = images.images[rows[0] : rows[-1] + 1]
        add_noise(part, rows, sigma, plan.noise_shape, plan.first_seed)
    stack = replace(plan.stack(images, settings), pose=plan.pose)
    return StateSimulation(stack, state, maps, sigma, settings)


def state_maps(
    models: Sequence[Atoms] | Sequence[Volume], settings: SimulationSettings
) -> Float[Tensor, "k box box box"]:
    """The maps that `simulate_states` projects."""
    atoms = [model for model in models if isinstance(model, Atoms)]
    framed = common_frame(atoms) if len(atoms) == len(models) else models
    return torch.stack([volume_of(model, settings, centre=False).values for model in framed])


def common_frame(models: Sequence[Atoms]) -> list[Atoms]:
    """The models moved by one vector, so that the mean of their centres of scattering mass is the origin.

    Centring each by itself would hide a part of what moves.
    """
    centres = []
    for model in models:
        mass = (model.occupancy * model.atomic_number).double()
        centres.append((mass[:, None] * model.position_A.double()).sum(0) / mass.sum())
    centre = torch.stack(centres).mean(0)
    return [replace(m, position_A=(m.position_A.double() - centre).to(m.position_A.dtype)) for m in models]


def assign_states(n: int, population: Float[Tensor, "k"], *, generator: torch.Generator) -> Int[Tensor, "n"]:
    """States of n images in random order, their counts as near to the populations as whole numbers can be.

    >>> counts = assign_states(10, torch.tensor([1.0, 3.0]), generator=torch.Generator()).bincount()
    >>> int(counts.sum()), int(counts[1]) in (7, 8)
    (10, True)
    """
    if population.numel() == 0 or bool((population < 0).any()) or not float(population.sum()) > 0:
        raise BadInput(
            "assign_states: populations must not be negative, nor all 0. Give one weight per state."
        )
    share = population.double() / population.double().sum() * n
    count = share.floor().long()
    count[(share - count).argsort(descending=True, stable=True)[: n - int(count.sum())]] += 1
    state = torch.repeat_interleave(torch.arange(len(population)), count)
    return state[torch.randperm(n, generator=generator)]


@torch.no_grad()
def _clean_images(
    maps: Tensor, state: Tensor, plan: StackPlan, settings: SimulationSettings
) -> Float[Tensor, "n box box"]:
    """Images without noise, state by state: a map is prepared once and held for as long as it is needed."""
    images = torch.empty(len(state), settings.box, settings.box)
    for number, values in enumerate(maps):
        rows = torch.nonzero(state == number)[:, 0]
        if len(rows) == 0:
            continue
        prepared = prepare(Volume(values, settings.pixel_size_A))
        for part in rows.split(CHUNK):
            images[part] = plan.sign * form_images(prepared, plan.pose[part], plan.ctf[part], mode="exact")
    return images


def _check(k: int, state: Tensor, settings: SimulationSettings) -> None:
    if k == 0:
        raise BadInput("simulate_states: no state given. Give at least one model.")
    if len(state) != settings.n_particles:
        raise BadInput(
            f"simulate_states: {len(state)} states for n_particles {settings.n_particles}. Give one per image."
        )
    if int(state.min()) < 0 or int(state.max()) >= k:
        raise BadInput(
            f"simulate_states: states {int(state.min())} to {int(state.max())}, but {k} models. "
            f"Count states from 0 to {k - 1}."
        )
