"""Centred Fourier transforms, shells, resampling and rings."""
