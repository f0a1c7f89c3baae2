"""`CTF`: the parameters of the contrast transfer function, one row per particle."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False, kw_only=True)
class CTF:
    """Parameters of CTF(s) = scale * sin(chi(s)) * exp(-B s^2 / 4), one row per particle.

    chi = pi lambda dz s^2 - pi/2 Cs lambda^3 s^4 + phase_shift + asin(w), positive at the origin: light protein
    on dark ice (RELION's sign). Values are computed by `cryorbit.physics.transfer`.

    Every field has shape (n,) unless it says otherwise. Zernike lists follow RELION's order; the odd ones (beam
    tilt among them) are a phase factor, the even ones add to chi.

    Raises
    ------
    BadInput
        If the lengths disagree or a value is not finite.
    """

    defocus_u_A: Float[Tensor, "n"]
    """Underfocus along the major axis, positive, angstrom."""
    defocus_v_A: Float[Tensor, "n"]
    astigmatism_angle_deg: Float[Tensor, "n"]
    """From the x axis to the U axis."""
    voltage_kV: Float[Tensor, "n"]
    cs_mm: Float[Tensor, "n"]
    amplitude_contrast: Float[Tensor, "n"]
    phase_shift_deg: Float[Tensor, "n"]
    b_factor_A2: Float[Tensor, "n"]
    scale: Float[Tensor, "n"]
    beam_tilt_mrad: Float[Tensor, "n 2"] | None = None
    odd_zernike: Float[Tensor, "n odd"] | None = None
    even_zernike: Float[Tensor, "n even"] | None = None
    magnification: Float[Tensor, "n 2 2"] | None = None

    def __post_init__(self) -> None:
        n = self.defocus_u_A.shape[0]
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if value.shape[0] != n:
                raise BadInput(f"CTF: {field.name} has {value.shape[0]} rows but defocus_u_A has {n}.")
            bad = ~torch.isfinite(value.reshape(n, -1)).all(1)
            if bad.any():
                row = int(torch.nonzero(bad)[0, 0])
                raise BadInput(
                    f"CTF: {field.name} of particle {row} is not finite. Correct or drop that row."
                )

    @classmethod
    def uniform(
        cls,
        n: int,
        *,
        defocus_A: float,
        voltage_kV: float = 300.0,
        cs_mm: float = 2.7,
        amplitude_contrast: float = 0.1,
        b_factor_A2: float = 0.0,
    ) -> CTF:
        """`n` equal rows without astigmatism."""

        def full(value: float) -> Tensor:
            return torch.full((n,), value)

        return cls(
            defocus_u_A=full(defocus_A),
            defocus_v_A=full(defocus_A),
            astigmatism_angle_deg=full(0.0),
            voltage_kV=full(voltage_kV),
            cs_mm=full(cs_mm),
            amplitude_contrast=full(amplitude_contrast),
            phase_shift_deg=full(0.0),
            b_factor_A2=full(b_factor_A2),
            scale=full(1.0),
        )

    def __len__(self) -> int:
        return self.defocus_u_A.shape[0]

    def __getitem__(self, index: slice | Tensor) -> CTF:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v[index] for name, v in values.items() if v is not None})
