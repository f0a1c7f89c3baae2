"""Whether protein is light or dark in the images: a check, and a warning before a run."""

from __future__ import annotations

from cryorbit.cli.checks import Finding
from cryorbit.cli.progress import say
from cryorbit.cli.reading import spread_rows
from cryorbit.data import ParticleStack

LOOKED_AT = 500
"""Images that are looked at."""

RADIUS_OF_BOX = 0.36
"""Radius of a particle as a share of its box, rather too large: the middle of a hollow one is dark."""

SURE_Z = 5.0
"""Evidence, in standard errors, above which the images are believed."""


def contrast(stack: ParticleStack) -> list[Finding]:
    """What the images themselves say of their contrast; nothing for a single image."""
    from cryorbit.physics.contrast import contrast_sign

    if len(stack) < 2:
        return []
    rows = spread_rows(len(stack), LOOKED_AT)
    ctf = None if stack.ctf is None else stack.ctf[rows]
    edge_A = stack.box * stack.pixel_size_A
    found = contrast_sign(
        stack.images[rows], ctf, pixel_size_A=stack.pixel_size_A, radius_A=RADIUS_OF_BOX * edge_A
    )
    values = {"sign": found.sign, "z_score": found.z_score, "confidence": found.confidence}
    if abs(found.z_score) < SURE_Z:
        return [Finding("contrast", "ok", f"not decided: {found}", values)]
    if found.sign < 0:
        message = f"{found}: ab initio and reconstruct reverse it (--contrast auto)"
        return [Finding("contrast", "warning", message, values)]
    return [Finding("contrast", "ok", str(found), values)]


def warn_of_dark_protein(stack: ParticleStack) -> None:
    """Say so where the images seem to be dark on light."""
    for finding in contrast(stack):
        if finding.level == "warning":
            say(f"warning: {stack.source}: {finding.message}")
