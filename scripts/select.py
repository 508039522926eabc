"""Which calibration set a group gets, and why."""

from contimg.stages import select
from contimg.stages.job import run_script

run_script(snakemake, select.run)
