"""Defocus of single particles by the likelihood of their images, pose and map known.

A change z of the defocus adds pi lambda z s^2 to the phase chi of the CTF, the same all around a ring. With image X brought
back by its shift, slice V (scale in it) and noise power N, the log-likelihood of z is, up to a constant,

    L(z) = sum_k [2 Re(X conj V) E sin(chi + d) - |V E|^2 sin^2(chi + d)] / N,      d = pi lambda z |k|^2,

and both sines open into products of functions of chi and of d, so four sums per ring, made once, give L for any z.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.data import CTF
from cryorbit.physics.transfer import ctf_phase, electron_wavelength_A

PHASE_STEP = 0.4
"""Step of the trial defocus values, radians of phase at the highest frequency; a parabola finds the top between them."""
REACH_SD = 3.0
"""Trial values reach to this many prior standard deviations."""


def defocus_change(
    values: Complex[Tensor, "n k"],
    slices: Complex[Tensor, "n k"],
    ctf: CTF,
    noise: Float[Tensor, "n k"],
    frequency_per_A: Float[Tensor, "k 2"],
    *,
    sd_A: float,
    moved_A: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, "n"]:
    """Most probable change of each particle's defocus, angstrom.

    Parameters
    ----------
    values, slices
        Transforms of the images, odd aberrations and shifts taken out, and the slices of the map times their scale.
    noise
        Power per coefficient.
    frequency_per_A
        (kx, ky), half a plane.
    sd_A
        Standard deviation of a Gaussian prior about the defocus that was given at first.
    moved_A
        What `ctf` has been changed by since then, angstrom; nothing unless given.
    """
    s2 = frequency_per_A.square().sum(1)
    ring_s2, ring = torch.unique(s2.double().mul(1e9).round().long(), return_inverse=True)
    chi = ctf_phase(ctf, frequency_per_A).float()
    envelope = ctf.scale[:, None] * torch.exp(-0.25 * ctf.b_factor_A2[:, None] * s2)
    cross = (values * slices.conj()).real * envelope / noise
    power = slices.abs().square() * envelope.square() / noise
    sine, cosine = chi.sin(), chi.cos()

    def rings(x: Float[Tensor, "n k"]) -> Float[Tensor, "n r"]:
        return x.new_zeros(len(x), len(ring_s2)).index_add_(1, ring, x)

    linear = rings(cross * sine), rings(cross * cosine)
    # sin^2(chi + d) = 1/2 - 1/2 cos 2chi cos 2d + 1/2 sin 2chi sin 2d
    squared = rings(power * (cosine.square() - sine.square())), rings(power * 2 * sine * cosine)
    wavelength = electron_wavelength_A(ctf.voltage_kV.double())
    middle = wavelength.mean()
    # Trials are phases, the same for all: what they are in angstrom goes with each particle's voltage.
    to_A = (middle / wavelength)[:, None]
    turn = (math.pi * float(middle) * 1e-9) * ring_s2.double()
    step = PHASE_STEP / float(turn.max())
    count = max(math.ceil(REACH_SD * sd_A / step), 1)
    trial = torch.arange(-count, count + 1, dtype=torch.float64) * (REACH_SD * sd_A / count)
    phase = (turn[:, None] * trial).float()
    likelihood = 2 * (linear[0] @ phase.cos() + linear[1] @ phase.sin())
    likelihood += 0.5 * (squared[0] @ (2 * phase).cos() - squared[1] @ (2 * phase).sin())
    before = 0.0 if moved_A is None else moved_A.double()[:, None]
    posterior = likelihood - (0.5 * ((trial * to_A + before) / sd_A).square()).float()
    return _top(posterior, trial.float()) * to_A[:, 0].float()


def _top(values: Float[Tensor, "n z"], trial: Float[Tensor, "z"]) -> Float[Tensor, "n"]:
    """Where each row is highest, by the parabola through its highest sample and the two beside it."""
    best = values.argmax(1).clamp(1, len(trial) - 2)
    rows = torch.arange(len(values))
    left, middle, right = (values[rows, best + o] for o in (-1, 0, 1))
    bend = left - 2 * middle + right
    offset = torch.where(bend < 0, 0.5 * (left - right) / bend, torch.zeros_like(bend)).clamp(-1, 1)
    return trial[best] + offset * (trial[1] - trial[0])
