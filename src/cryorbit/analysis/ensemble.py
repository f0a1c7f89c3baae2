"""How populated each state is, from how well each explains each image."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


def ensemble_weights(
    log_likelihood: Float[Tensor, "images states"], *, iterations: int = 200
) -> Float[Tensor, "states"]:
    """Weights w, sum 1, that maximise sum over images of log sum over states of w L: reweighting an ensemble.

    EM for the weights of a mixture with known components, w <- mean over images of w L / (sum of w L); the
    likelihood never falls. States may be frames of a molecular dynamics run, or maps.

    Raises
    ------
    BadInput
        If there is no image or no state, or an image has no state that could have made it.
    """
    images, states = log_likelihood.shape
    if not images or not states or bool((log_likelihood.amax(1) == -math.inf).any()):
        raise BadInput("ensemble_weights: every image needs a state with a finite log-likelihood.")
    log_w = log_likelihood.new_full((states,), -math.log(states))
    for _ in range(iterations):
        share = torch.log_softmax(log_likelihood + log_w, 1)
        log_w = torch.logsumexp(share, 0) - math.log(images)
    return log_w.exp()
