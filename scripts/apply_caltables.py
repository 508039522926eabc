"""CORRECTED_DATA in Jy, with weights in Jy^-2."""

from pathlib import Path

from contimg.calibration import apply_set
from contimg.stage import read_json, stage

with stage(snakemake) as job:
    chosen, converted = read_json(snakemake.input.chosen), read_json(snakemake.input.converted)
    job.result = apply_set(Path(snakemake.input.ms), chosen, converted["app_dec_deg"], job.config, job.logfile)
