"""CORRECTED_DATA in Jy, with weights in Jy^-2."""

from contimg.stages import apply
from contimg.stages.job import run_script

run_script(snakemake, apply.run)
