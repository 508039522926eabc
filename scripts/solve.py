"""Sky model and solutions of a calibrator group."""

from pathlib import Path

from contimg.stages.job import stage
from contimg.stages.solve import solve_group
from contimg.store.files import read_json

with stage(snakemake) as job:
    app_dec_deg = read_json(snakemake.input.converted)["app_dec_deg"]
    job.result = solve_group(
        Path(snakemake.input.ms), job.group, app_dec_deg, job.config, job.logfile
    )
