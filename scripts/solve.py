"""Sky model and solutions of a calibrator group."""

from pathlib import Path

from contimg.calibration import solve_group
from contimg.files import read_json
from contimg.stage import stage

with stage(snakemake) as job:
    app_dec_deg = read_json(snakemake.input.converted)["app_dec_deg"]
    job.result = solve_group(Path(snakemake.input.ms), job.group, app_dec_deg, job.config, job.logfile)
