"""Snakemake runs: one, one after the other, on a cluster, and after one that died."""
