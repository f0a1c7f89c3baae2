"""Whether protein is light or dark in the images, as one of the checks."""

from __future__ import annotations

from cryorbit.cli.checks import Finding
from cryorbit.data import ParticleStack


def contrast(stack: ParticleStack) -> list[Finding]:
    """What the images themselves say of their contrast."""
    return []
