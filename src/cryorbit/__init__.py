"""Cryorbit: cryo-EM particle images to maps, poses and motions you can trust.

Floors, from the ground up; nobody imports upward:

1. `geometry`, `fourier`: mathematics, tensors in and tensors out.
2. `data`: the nouns (`ParticleStack`, `Pose`, `CTF`, `Volume`, `Atoms`, `SO3Distribution`).
3. `io`, `physics`, `nn`, `analysis`: four wings, strangers to one another.
4. `models`: a piece of `nn` meets a piece of `physics`.
5. `inference`: settings + nouns -> nouns.
6. `report`, `benchmarks`: telling.
7. `cli`: the shell, the only place that opens paths, parses arguments and prints.

Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
