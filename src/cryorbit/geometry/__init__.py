"""Mathematics of rotations: tensors in, tensors out."""
