"""Maps and poses to numbers."""
