"""Subband Measurement Sets to one full-band Measurement Set."""

from pathlib import Path

from contimg.conversion import concat_subbands
from contimg.stage import stage

with stage(snakemake) as job:
    subbands = {sb: Path(path) for sb, path in enumerate(snakemake.input.subbands)}
    job.result = concat_subbands(subbands, Path(snakemake.output.ms))
