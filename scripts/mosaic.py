"""The images of a tract on a sidereal day as one."""

from contimg.stages import mosaic
from contimg.stages.job import run_script

run_script(snakemake, mosaic.run)
