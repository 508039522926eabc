"""Validate and flag the Measurement Set."""

from pathlib import Path

from contimg.calibration.casa_tasks import PREPARED_FLAGS, save_flags
from contimg.stages.job import stage
from contimg.stages.prepare import prepare

with stage(snakemake) as job:
    job.result = prepare(
        Path(snakemake.input.ms), job.config.flagging, job.config.catalogues.stations, job.logfile
    )
    save_flags(Path(snakemake.input.ms), PREPARED_FLAGS)
