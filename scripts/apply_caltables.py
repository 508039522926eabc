"""CORRECTED_DATA in Jy, with weights in Jy^-2."""

from pathlib import Path

from contimg.calibration import apply_set
from contimg.stage import read_json, stage

with stage(snakemake) as job:
    job.result = apply_set(Path(snakemake.input.ms), read_json(snakemake.input.chosen), job.logfile)
