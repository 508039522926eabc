"""Plots of one group."""

from contimg.stages import qa
from contimg.stages.job import run_script

run_script(snakemake, qa.run)
