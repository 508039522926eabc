"""Subband Measurement Sets to one full-band Measurement Set."""

from pathlib import Path

from contimg.conversion import concat_subbands
from contimg.stage import stage

with stage(snakemake) as job:
    job.result = concat_subbands([Path(path) for path in snakemake.input.subbands], Path(snakemake.output.ms))
