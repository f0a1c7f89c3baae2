"""A volume at a latent from the images near it: what no decoder can have made up.

The images of each half set are ordered by the Mahalanobis distance of their latents' posteriors to the wanted latent, and
reconstructed from the nearest 1, 2, 4 ... percent. More images mean less noise and more blur by other states, and which
weighs more depends on the frequency; so the share is chosen per Fourier shell, by how well the regularised map of one half
predicts the nearest images of the other half. Kernel reconstruction from posteriors of a linear model is the readout of
RECOVAR (Gilles & Singer 2025); nested top-hat kernels make it one insertion per image whatever the number of widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.data import ParticleStack, Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.shells import spread_shells
from cryorbit.inference.half_sets import half_sets
from cryorbit.inference.linear_flex import LinearSettings, observed_for
from cryorbit.inference.linear_model import LinearModel
from cryorbit.physics.backproject import Backprojector, prior_power_from_fsc
from cryorbit.physics.lattice import lattice_radius
from cryorbit.physics.project import prepare

SHARES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1.0)
"""Of each half set's images that a reconstruction is made of, nearest first."""
LEAST_IMAGES = 20
"""Of a half set in the smallest reconstruction."""
_ROWS = 200


@dataclass(frozen=True, eq=False)
class KernelVolume:
    """A volume from images near a latent.

    Parameters
    ----------
    share
        Of all images that each shell was made of, shape (box // 2 + 1,).
    """

    map: Volume
    share: Float[Tensor, "shells"]


class KernelReadout:
    """Makes volumes at latents from the images that a linear model was fitted to.

    The latents come from a model of all images, so the halves are independent in their images' noise only as far as the
    latents do not carry it: the choice of widths leans on that, a resolution should not.

    Parameters
    ----------
    stack, settings
        Those of the fit.
    model
        Its result.
    """

    def __init__(self, stack: ParticleStack, settings: LinearSettings, model: LinearModel) -> None:
        if len(model.latent) != len(stack):
            raise BadInput(
                f"{stack.source}: {len(stack)} images, but the model has latents of {len(model.latent)}. "
                "Give the stack that the model was fitted to."
            )
        self.observed, self.model = observed_for(stack, settings), model
        halves = half_sets(stack, generator=torch.Generator().manual_seed(settings.seed))
        self.rows = [torch.nonzero(halves == h)[:, 0] for h in (0, 1)]
        self.all = [self._insert(None, rows) for rows in self.rows]
        self.consensus = self._regularised(*self.all)
        radius = lattice_radius(stack.box, model.mean.values) / 2
        self.shell = radius.round().long().clamp_max(stack.box // 2 + 1)

    def volume(self, z: Float[Tensor, "k"]) -> KernelVolume:
        """The volume at `z`, masked, each shell filtered by what the halves agree on."""
        distance = self.model.squared_distance(z)
        halves = [self._nested(h, distance) for h in (0, 1)]
        maps, errors = [], []
        for first, second in zip(*halves, strict=True):
            both, own = self.consensus if first is self.all[0] else self._regularised(first, second)
            maps.append(both)
            errors.append(sum(self._misfit(own[h], halves[1 - h][0]) for h in (0, 1)))
        choice = _choice(torch.stack(errors))
        box, pixel = self.observed.box, self.observed.pixel_size_A
        spectra = torch.stack([torch.fft.rfftn(m) for m in maps])
        index = spread_shells(choice.float(), n=box, ndim=3, outside=float(choice[-1])).long()
        values = torch.fft.irfftn(spectra.gather(0, index[None])[0], s=(box,) * 3)
        return KernelVolume(Volume(values * self.model.mask, pixel), torch.tensor(SHARES)[choice])

    def _nested(self, half: int, distance: Float[Tensor, "i"]) -> list[Backprojector]:
        """Sums of the nearest images, for each share."""
        rows = self.rows[half]
        rows = rows[distance[rows].argsort()]
        ends = [max(math.ceil(s * len(rows)), min(LEAST_IMAGES, len(rows))) for s in SHARES if s < 1]
        out: list[Backprojector] = []
        for first, last in pairwise([0, *ends]):
            out.append(self._insert(out[-1] if out else None, rows[first:last]))
        return [*out, self.all[half]]

    def _insert(self, start: Backprojector | None, rows: Int[Tensor, "n"]) -> Backprojector:
        stack = self.observed.stack
        assert stack.pose is not None  # checked when the model was fitted
        sums = Backprojector.empty(stack.box, pixel_size_A=stack.pixel_size_A)
        for part in rows.split(_ROWS):
            if len(part):
                ctf = None if stack.ctf is None else stack.ctf[part]
                noise = self.observed.noise_power
                sums.insert(self.observed.images(part), stack.pose[part], ctf, noise_power=noise)
        return sums if start is None else start + sums

    def _regularised(
        self, first: Backprojector, second: Backprojector
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The filtered map of both halves together, and of each."""
        mask = Volume(self.model.mask, self.observed.pixel_size_A)
        curve = fourier_shell_correlation(first.solve(), second.solve(), mask=mask).correlation.float()
        curve = curve.clamp(0.01, 0.999)
        own = [
            s.solve(prior_power=prior_power_from_fsc(curve, s.information())).values * mask.values
            for s in (first, second)
        ]
        joined = first + second
        prior = prior_power_from_fsc(2 * curve / (1 + curve), joined.information())
        return joined.solve(prior_power=prior).values * mask.values, (own[0], own[1])

    def _misfit(self, values: Float[Tensor, "n n n"], data: Backprojector) -> Float[Tensor, "shells"]:
        """Sum over each shell of the data's squared misfit to a map, less that of an empty one."""
        half = prepare(Volume(values, 1.0)).half
        cost = data.denominator * half.abs().square() - 2 * (half.conj() * data.numerator).real
        total = torch.bincount(self.shell.flatten(), weights=cost.flatten().double())
        return total[: self.observed.box // 2 + 1]


def _choice(errors: Float[Tensor, "w shells"]) -> Int[Tensor, "shells"]:
    """The best share of each shell, over windows of three shells; never fewer images further out."""
    padded = torch.nn.functional.pad(errors[:, None], (1, 1), mode="replicate")
    smooth = torch.nn.functional.avg_pool1d(padded, 3, stride=1)[:, 0]
    return smooth.argmin(0).cummax(0).values
