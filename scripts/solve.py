"""Sky model and solutions of a calibrator group."""

from contimg.stages import solve
from contimg.stages.job import run_script

run_script(snakemake, solve.run)
