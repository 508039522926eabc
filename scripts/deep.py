"""All days of a tract as one."""

from contimg.stages import deep
from contimg.stages.job import run_script

run_script(snakemake, deep.run)
