"""Directions, the primary beam, catalogues, calibrators, and what the array sees of them."""
