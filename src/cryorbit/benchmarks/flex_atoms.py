"""What atoms say of a motion: a model carried along a recovered path, and the map of all images with the motion undone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryorbit.analysis.fsc_area import fsc_area
from cryorbit.analysis.latent_units import ErrorUnits
from cryorbit.analysis.latents import diffusion_map, path_coordinate
from cryorbit.analysis.masks import automatic_mask
from cryorbit.benchmarks.flex_tasks import FlexData
from cryorbit.data import Gaussians, Volume
from cryorbit.inference.flex_reconstruction import deformed_reconstruction
from cryorbit.inference.flex_result import FlexResult
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.inference.flex_start import consensus_map, observed_for
from cryorbit.physics.gaussian_transfer import carry_points
from cryorbit.physics.scatter import atoms_to_density

PLACES = 20
"""Along the path, each standing for as many images."""
_MOVING = 0.5
"""An atom belongs to the moving domains if it goes more than this share of the way of the one that goes furthest."""


@dataclass(frozen=True)
class CarriedAtoms:
    """Root mean square distances of carried C-alpha atoms from the true frames, angstrom: mean and largest over the path.

    Parameters
    ----------
    mean_A, most_A
        Of the first frame's atoms carried along by the Gaussians.
    unmoved_mean_A, unmoved_most_A
        Of the first frame's atoms where they are: chance.
    """

    mean_A: float
    most_A: float
    unmoved_mean_A: float
    unmoved_most_A: float


def carried_atoms(data: FlexData, result: FlexResult) -> CarriedAtoms:
    """The first true frame's C-alpha atoms carried along the path that the latents form, against the true frames.

    The images are put in order by the first diffusion coordinate of their latents and cut into `PLACES` equal shares; the
    median latent of each is decoded. Only the direction is taken from the truth: which end of the path is the first frame.
    Frames are not superposed.
    """
    place = _place(data, result)
    truth = data.image_coordinate()
    assert truth is not None  # of a path
    last = len(data.maps) - 1
    latents, frames = [], []
    for k in range(PLACES):
        rows = torch.nonzero((place >= k / PLACES) & (place <= (k + 1) / PLACES))[:, 0]
        latents.append(result.z[rows].median(0).values)
        frames.append(round((k + 0.5) / PLACES * last))
    alpha = torch.stack([_alpha(data, frame) for frame in frames])
    with torch.no_grad():
        moved = result.model(torch.stack(latents))
    first = Gaussians(moved.position_A[0], moved.amplitude[0], moved.width_A)
    carried = carry_points(alpha[0], first, moved.position_A)
    off, still = _rmsd(carried, alpha), _rmsd(alpha[:1], alpha)
    return CarriedAtoms(float(off.mean()), float(off.max()), float(still.mean()), float(still.max()))


@dataclass(frozen=True)
class MovingDomains:
    """Area under the FSC with the true map of the path's middle, within the domains that move; perfect is 0.5."""

    deformed: float
    consensus: float


def moving_domains(data: FlexData, result: FlexResult, settings: FlexSettings) -> MovingDomains:
    """Deformed reconstruction at the middle of the path, and the plain consensus, against the true middle."""
    middle = len(data.maps) // 2
    observed = observed_for(data.stack, settings)
    reference = result.z[data.state == middle].median(0).values
    (record,) = deque(deformed_reconstruction(result, observed, reference), maxlen=1)
    mask, truth = moving_mask(data, middle), data.maps[middle][None]
    maps = (record.result.map, consensus_map(observed))
    deformed, consensus = (float(fsc_area(v.values[None].float(), truth, mask=mask)[0]) for v in maps)
    return MovingDomains(deformed, consensus)


def about_atoms(data: FlexData, result: FlexResult, settings: FlexSettings) -> dict[str, float]:
    """Both, as numbers of a row of the benchmark."""
    atoms, domains = carried_atoms(data, result), moving_domains(data, result, settings)
    return {
        "carried_rmsd_A": atoms.mean_A,
        "carried_rmsd_most_A": atoms.most_A,
        "unmoved_rmsd_A": atoms.unmoved_mean_A,
        "unmoved_rmsd_most_A": atoms.unmoved_most_A,
        "moving_fsc_area": domains.deformed,
        "moving_fsc_area_consensus": domains.consensus,
    }


def moving_mask(data: FlexData, state: int) -> Float[Tensor, "box box box"]:
    """Soft mask of the atoms that move far along the path, where they are in one state."""
    ends = [data.atoms[s].position_A for s in (0, len(data.atoms) - 1)]
    away = (ends[1] - ends[0]).norm(dim=1)
    moving = data.atoms[state].select(away > _MOVING * away.max())
    pixel = data.stack.pixel_size_A
    density = atoms_to_density(
        moving, box=data.stack.box, pixel_size_A=pixel, b_factor_A2=100, centre=False
    ).values
    return automatic_mask(Volume(density.float(), pixel)).values


def _place(data: FlexData, result: FlexResult) -> Float[Tensor, "n"]:
    """Each image's rank along the path, 0 to 1, counted from the end where the first frame is."""
    latents = ErrorUnits.of(result.precision).coordinates(result.z)
    place = path_coordinate(diffusion_map(latents, components=1)[:, 0])
    truth = data.image_coordinate()
    assert truth is not None  # of a path
    falls = float(torch.corrcoef(torch.stack((place.double(), truth.double())))[0, 1]) < 0
    rank = place.argsort().argsort().double() / max(len(place) - 1, 1)
    return 1 - rank if falls else rank


def _alpha(data: FlexData, state: int) -> Float[Tensor, "p 3"]:
    atoms = data.atoms[state]
    return atoms.position_A[_is_alpha(data)].float()


def _is_alpha(data: FlexData) -> Bool[Tensor, "a"]:
    names = data.atoms[0].atom_name
    assert names is not None  # of a structure file
    return torch.as_tensor(names == "CA")


def _rmsd(a: Float[Tensor, "k p 3"], b: Float[Tensor, "m p 3"]) -> Float[Tensor, "m"]:
    return (a - b).square().sum(-1).mean(-1).sqrt()
