"""Fluxes of all known sources in an image."""

from contimg.stages import photometry
from contimg.stages.job import run_script

run_script(snakemake, photometry.run)
