"""The calibrated Measurement Set to images."""

from contimg.stages import image
from contimg.stages.job import run_script

run_script(snakemake, image.run)
