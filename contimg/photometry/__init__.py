"""Fluxes of known places in every image, and what they do in time."""
