"""Validate and flag the Measurement Set."""

from contimg.stages import prepare
from contimg.stages.job import run_script

run_script(snakemake, prepare.run)
