"""Continuum imaging of DSA-110 drift scans: everything that can be called and tested without
Snakemake."""
