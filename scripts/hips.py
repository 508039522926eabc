"""A map of a mosaic for sky browsers."""

from contimg.stages import hips
from contimg.stages.job import run_script

run_script(snakemake, hips.run)
