"""What is known of each image beside its pose: the noise of its group and half, its scale, its defocus.

`ParticleModel` is an `Observations` whose noise and transfer function are each particle's own, so that everything that
takes observations (search, refinement, insertion) uses them. It is measured anew after every round, each half against
its own map: nothing passes from one half set to the other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.inference.defocus import defocus_change
from cryorbit.inference.engine import Workers
from cryorbit.inference.half_maps import HalfMaps
from cryorbit.inference.observations import Observations
from cryorbit.inference.refine import half_disk
from cryorbit.inference.rounds import CHUNK, PoseTable
from cryorbit.physics.interpolation import gather

NOISE_IMAGES = 500
"""Images of a group and half whose residuals tell its noise: 0.6 % of a shell of 30 coefficients."""
LEAST_OF_GROUP = 100
"""Images that a group needs in a half for a noise spectrum of its own; else it takes that of the whole half. As many are
needed in a half for scales."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ParticleModel(Observations):
    """Observations with each particle's own noise and scale. A changed defocus is in `stack.ctf`."""

    half: Int[Tensor, "n"]
    """0 or 1."""
    group: Int[Tensor, "n"]
    """Noise group, 0, 1, ..: the optics group."""
    group_noise: Float[Tensor, "2 g shells"]
    """E |noise|^2 of one coefficient of the unnormalised transform: by half, group and shell."""
    scale: Float[Tensor, "n"]
    """Contrast of each image over the mean of its half."""
    defocus_moved_A: Float[Tensor, "n"]
    """What the defocus of each particle has been changed by, angstrom."""

    @classmethod
    def of(cls, observed: Observations, half: Int[Tensor, "n"]) -> ParticleModel:
        """Before anything is known: one spectrum for all, every scale 1."""
        shared = {f.name: getattr(observed, f.name) for f in fields(Observations)}
        n, groups = len(observed.stack), observed.stack.optics_group
        group = torch.zeros(n, dtype=torch.long) if groups is None else groups.unique(return_inverse=True)[1]
        count = int(group.max()) + 1
        noise = observed.noise_power.expand(2, count, -1).clone()
        return cls(
            **shared,
            half=half,
            group=group,
            group_noise=noise,
            scale=torch.ones(n),
            defocus_moved_A=torch.zeros(n),
        )

    def noise_of(
        self, rows: Int[Tensor, "n"], radius: Float[Tensor, "k"], *, floor: float
    ) -> Float[Tensor, "n k"]:
        """Noise power of each image at radii in Fourier pixels, at least `floor` times the power of all images."""
        shell = radius.round().long().clamp(0, self.group_noise.shape[-1] - 1)
        power = self.group_noise[self.half[rows], self.group[rows]]
        return torch.maximum(power, floor * self.total_power)[:, shell]

    def ctf(self, rows: Int[Tensor, "n"], points: Float[Tensor, "*grid 2"]) -> Float[Tensor, "n *grid"]:
        """CTF times scale at points given in Fourier pixels."""
        scale = self.scale[rows].reshape(-1, *[1] * (points.ndim - 1))
        return super().ctf(rows, points) * scale

    def with_scales(self, poses: PoseTable) -> ParticleModel:
        """Scales by least squares against each half's map, shrunk to 1 by what their scatter leaves beside noise.

        With model power P of an image, 1 + (explained - 1) / 2 is the least-squares factor on its scale and 1 / (2 P) that
        factor's variance; the scatter beyond it is the true spread of scales (empirical Bayes, as in James and Stein).
        """
        power = 2 * (poses.deviation / (poses.explained - 1).where(poses.explained != 1, torch.ones(()))) ** 2
        factor = ((poses.explained + 1) / 2).clamp(0.2, 5.0)
        scale = self.scale.clone()
        for h in (0, 1):
            mine = self.half == h
            if int(mine.sum()) < LEAST_OF_GROUP:
                continue  # too few to tell the spread of scales from noise: they stay
            raw, noise = (self.scale * factor)[mine], 1 / (2 * power[mine].clamp_min(1.0))
            middle = raw.median()
            spread = (1.4826 * (raw - middle).abs().median()).square()
            true = (spread / middle.square() - noise.median()).clamp_min(0)
            share = true / (true + noise).clamp_min(1e-12)
            scale[mine] = 1 + share * (raw / middle - 1)
        return replace(self, scale=scale)

    def with_noise(self, poses: PoseTable, maps: HalfMaps, *, radius: float, team: Workers) -> ParticleModel:
        """Noise from what the maps leave of some images of each half and group, out to `radius` Fourier pixels."""
        n_shells = self.group_noise.shape[-1]
        points = half_disk(min(radius, n_shells - 1.5), inner=0.0)
        shell = points.norm(dim=1).round().long()
        count = torch.bincount(shell, minlength=n_shells)
        out = self.group_noise.clone()

        def residuals(part: tuple[Tensor, Tensor, int]) -> None:
            out, rows, h = part
            left = self.residual(rows, poses, maps.halves[h], points).abs().square()
            out.index_add_(1, shell, left)

        for h in (0, 1):
            spectra = []
            for g in range(out.shape[1]):
                rows = torch.nonzero((self.half == h) & (self.group == g))[:, 0]
                enough = len(rows) >= LEAST_OF_GROUP
                rows = rows[torch.linspace(0, max(len(rows) - 1, 0), min(len(rows), NOISE_IMAGES)).long()]
                total = torch.zeros(len(rows), n_shells)
                split = zip(total.split(CHUNK), rows.split(CHUNK), strict=True)
                parts = [(o, p, h) for o, p in split if len(p)]
                team.map(residuals, parts[team.ranks.rank :: team.ranks.size])
                team.ranks.sum_(total)
                spectra.append((total, enough))
            everyone = torch.cat([total for total, _ in spectra])
            for g, (total, enough) in enumerate(spectra):
                mean = (total if enough else everyone).mean(0) / count.clamp_min(1)
                mean[:2] = mean[2]  # the mean was taken off the images, so the lowest shells read low
                out[h, g] = torch.where(
                    count > 0, mean.clamp_min(1e-12 * float(self.total_power.max())), out[h, g]
                )
        return replace(self, group_noise=out)

    def residual(
        self,
        rows: Int[Tensor, "b"],
        poses: PoseTable,
        half: Complex[Tensor, "p p h"],
        points: Float[Tensor, "k 2"],
    ) -> Complex[Tensor, "b k"]:
        """Transforms of images, brought back by their shifts, less CTF times scale times the map's slices."""
        values, slices = self.image_and_slice(rows, poses, half, points)
        return values - self.ctf(rows, points) * slices

    def image_and_slice(
        self,
        rows: Int[Tensor, "b"],
        poses: PoseTable,
        half: Complex[Tensor, "p p h"],
        points: Float[Tensor, "k 2"],
    ) -> tuple[Complex[Tensor, "b k"], Complex[Tensor, "b k"]]:
        """Transforms of images, brought back by their shifts, and the map's slices at their poses, without CTF."""
        centre = self.box // 2
        values = self.transforms(rows)[:, points[:, 1].long() + centre, points[:, 0].long()]
        values = self.undo_odd_phase(values, rows, points)
        phase = poses.shift_px[rows] @ points.T * (2 * torch.pi / self.box)
        rotation = poses.rotation[rows]
        at = points[:, :1] * rotation[:, None, 0] + points[:, 1:] * rotation[:, None, 1]
        # The map may end before the images do: it is zero beyond.
        inside = points.norm(dim=1) < half.shape[0] / 4 - 1
        slices = torch.zeros_like(values)
        slices[:, inside] = gather(half, 2 * at[:, inside])
        return values * torch.polar(torch.ones_like(phase), phase), slices

    def with_defocus(
        self, poses: PoseTable, maps: HalfMaps, *, radius: float, sd_A: float, team: Workers
    ) -> tuple[ParticleModel, Float[Tensor, "n"]]:
        """The defocus of every particle against its half's map, and the changes made, angstrom.

        `sd_A` is the standard deviation of a prior about the defocus that the file gave, whatever earlier rounds changed.
        """
        ctf = self.stack.ctf
        assert ctf is not None  # the caller asked only where there is one
        points = half_disk(radius, inner=2.0)
        change = torch.zeros(len(self.stack))

        def work(part: tuple[Tensor, int]) -> None:
            rows, h = part
            values, slices = self.image_and_slice(rows, poses, maps.halves[h], points)
            noise = self.noise_of(rows, points.norm(dim=1), floor=0.0)
            change[rows] = defocus_change(
                values,
                slices * self.scale[rows, None],
                ctf[rows],
                noise,
                points / (self.box * self.pixel_size_A),
                sd_A=sd_A,
                moved_A=self.defocus_moved_A[rows],
            )

        halves = [(h, torch.nonzero(self.half == h)[:, 0]) for h in (0, 1)]
        parts = [(p, h) for h, rows in halves for p in rows.split(CHUNK) if len(p)]
        team.map(work, parts[team.ranks.rank :: team.ranks.size])
        team.ranks.sum_(change)
        moved = replace(
            ctf,
            defocus_u_A=ctf.defocus_u_A + change.to(ctf.defocus_u_A),
            defocus_v_A=ctf.defocus_v_A + change.to(ctf.defocus_v_A),
        )
        total = self.defocus_moved_A + change
        return replace(self, stack=replace(self.stack, ctf=moved), defocus_moved_A=total), change

    def state(self) -> dict[str, Tensor]:
        """What changes from round to round, for a checkpoint."""
        out = {"model_noise": self.group_noise, "model_scale": self.scale}
        if self.stack.ctf is not None:
            out |= {"model_u": self.stack.ctf.defocus_u_A, "model_v": self.stack.ctf.defocus_v_A}
            out |= {"model_moved": self.defocus_moved_A}
        return out

    def restored(self, state: dict[str, Any]) -> ParticleModel:
        """The model as `state` says it was."""
        stack, total = self.stack, self.defocus_moved_A
        if stack.ctf is not None:
            moved = replace(stack.ctf, defocus_u_A=state["model_u"], defocus_v_A=state["model_v"])
            stack, total = replace(stack, ctf=moved), state["model_moved"]
        noise, scale = state["model_noise"], state["model_scale"]
        return replace(self, stack=stack, group_noise=noise, scale=scale, defocus_moved_A=total)
