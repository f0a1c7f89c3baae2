"""Data sets of the heterogeneity benchmark: simulated images of a recipe's states, and the truth behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.benchmarks.flex_recipes import Kind, States, states_of
from cryorbit.data import CTF, Atoms, ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.physics.simulate_states import assign_states, simulate_states
from cryorbit.physics.stack_plan import SimulationSettings


@dataclass(frozen=True, kw_only=True)
class FlexTask:
    """What to simulate of a recipe. One seed decides the images; the states are the recipe's own."""

    images: int = 10_000
    """Number of images."""
    box: int = 64
    """Edge of an image, pixels."""
    pixel_size_A: float | None = None
    """Pixel size, angstrom; None: the particle fills about 60 % of the box."""
    snr: float = 0.1
    """Variance of the signal over the whole box (mean of the data set) divided by that of the noise."""
    shift_sd_px: float = 1.0
    """Standard deviation of the true shifts per axis, pixels."""
    b_factor_A2: float = 100.0
    """B-factor of every atom."""
    defocus_um: tuple[float, float] = (1.0, 3.0)
    """Lowest and highest mean underfocus, micrometre. Ignored when a CTF table is given."""
    pose_error_deg: float = 0.0
    """Root mean square angle between the rotations in the stack and the true ones."""
    pose_error_px: float = 0.0
    """Root mean square distance between the shifts in the stack and the true ones, pixels."""
    seed: int = 0
    """Decides states, poses, CTF, noise and pose errors."""

    def __post_init__(self) -> None:
        checks = {
            "pixel_size_A must be positive": self.pixel_size_A is None or self.pixel_size_A > 0,
            "pose errors and shifts must not be negative": min(
                self.pose_error_deg, self.pose_error_px, self.shift_sd_px
            )
            >= 0,
        }
        for message, holds in checks.items():
            if not holds:
                raise BadInput(f"FlexTask: {message}, got {self}.")

    def simulation(self, pixel_size_A: float) -> SimulationSettings:
        """The same for `simulate_states`."""
        return SimulationSettings(
            n_particles=self.images,
            box=self.box,
            pixel_size_A=pixel_size_A,
            snr=self.snr,
            shift_sd_A=self.shift_sd_px * pixel_size_A,
            b_factor_A2=self.b_factor_A2,
            defocus_um=self.defocus_um,
            seed=self.seed,
        )


@dataclass(frozen=True, eq=False)
class FlexData:
    """Images of a particle with several states, and the truth.

    Parameters
    ----------
    name, kind
        Of the recipe; `kind` says how the states lie: around a circle, along a path, apart, or as a cloud.
    stack
        The images, with CTF and poses: the true ones, or those with the errors asked for.
    truth
        The poses that made the images.
    state
        Which state each image shows, shape (n,).
    maps
        The map of every state, on the images' grid, in their frame and grey values.
    coordinate
        Shape (k,): the state's angle in radians, or its place along the path, 0 to 1; None for classes and clouds.
    group
        Shape (k,): the state's composition; states of one group differ by motion alone.
    atoms
        The model of every state, in the frame of its map.
    sigma
        Standard deviation of the noise per pixel.
    """

    name: str
    kind: Kind
    stack: ParticleStack
    truth: Pose
    state: Int[Tensor, "n"]
    maps: Float[Tensor, "k box box box"]
    coordinate: Float[Tensor, "k"] | None
    group: Int[Tensor, "k"]
    atoms: tuple[Atoms, ...]
    sigma: float

    def __len__(self) -> int:
        return len(self.stack)

    def volume(self, state: int) -> Volume:
        """The true map of one state."""
        return Volume(self.maps[state], self.stack.pixel_size_A)

    def image_coordinate(self) -> Float[Tensor, "n"] | None:
        """The true coordinate of each image, None where the states have none."""
        return None if self.coordinate is None else self.coordinate[self.state]

    def with_truth(self) -> ParticleStack:
        """The stack with the true poses in it."""
        return replace(self.stack, pose=self.truth)


def flex_data(
    name: str, settings: FlexTask, *, structures: Path | None = None, ctf_table: CTF | None = None
) -> FlexData:
    """The data set of a recipe by name; `flex_recipes.RECIPES` has them all.

    Parameters
    ----------
    structures
        Folder of structure files, for the recipes that need one.
    ctf_table
        Rows to draw from; None: defocus from the settings' range.

    Raises
    ------
    BadInput
        If there is no such recipe, or the particle does not fit into the box.
    BadFile
        If a structure file is missing.
    """
    return images_of_states(states_of(name, structures=structures), settings, ctf_table=ctf_table)


def images_of_states(states: States, settings: FlexTask, *, ctf_table: CTF | None = None) -> FlexData:
    """Simulated images of given states."""
    pixel = settings.pixel_size_A or states.width_A / settings.box
    generator = torch.Generator().manual_seed(settings.seed)
    state = assign_states(settings.images, states.population, generator=generator)
    made = simulate_states(states.atoms, state, settings.simulation(pixel), ctf_table=ctf_table)
    given = with_pose_errors(
        made.truth,
        angle_deg=settings.pose_error_deg,
        shift_A=settings.pose_error_px * pixel,
        generator=generator,
    )
    return FlexData(
        states.name,
        states.kind,
        replace(made.stack, pose=given),
        made.truth,
        state,
        made.maps,
        states.coordinate,
        states.group,
        states.atoms,
        made.sigma,
    )


def with_pose_errors(pose: Pose, *, angle_deg: float, shift_A: float, generator: torch.Generator) -> Pose:
    """The poses with Gaussian errors of the given root mean squares: a turn of the particle in the microscope, about
    an axis in any direction, and a shift in any direction.
    """
    turn = torch.randn(len(pose), 3, generator=generator).to(pose.rotation) / math.sqrt(3)
    step = torch.randn(len(pose), 2, generator=generator).to(pose.shift_A) / math.sqrt(2)
    error = rotvec_to_matrix(turn * math.radians(angle_deg))
    return Pose(error @ pose.rotation, pose.shift_A + shift_A * step)
