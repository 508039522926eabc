"""The sources of a mosaic."""

from contimg.stages import catalogue
from contimg.stages.job import run_script

run_script(snakemake, catalogue.run)
