"""A calibrator group's tables into the registry."""

from contimg.stages import register
from contimg.stages.job import run_script

run_script(snakemake, register.run)
