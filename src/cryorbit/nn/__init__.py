"""Layers that know symmetry, not microscopes."""
