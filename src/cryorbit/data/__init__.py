"""The nouns that stages hand to one another: frozen, validated, without files or learning."""

from cryorbit.data.atoms import Atoms
from cryorbit.data.ctf import CTF
from cryorbit.data.distribution import SO3Distribution
from cryorbit.data.gaussians import Gaussians
from cryorbit.data.particles import ImageSource, MemoryImages, ParticleStack, SelectedImages
from cryorbit.data.pose import Pose
from cryorbit.data.protein_chain import ProteinChain
from cryorbit.data.volume import Volume

__all__ = [
    "CTF",
    "Atoms",
    "Gaussians",
    "ImageSource",
    "MemoryImages",
    "ParticleStack",
    "Pose",
    "ProteinChain",
    "SO3Distribution",
    "SelectedImages",
    "Volume",
]
