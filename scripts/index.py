"""A finished group into the databases."""

from contimg.stages import index
from contimg.stages.job import run_script

run_script(snakemake, index.run)
