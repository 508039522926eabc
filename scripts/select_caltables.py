"""Which calibration set a group gets, and why."""

from contimg.registry import select_for
from contimg.stage import stage

with stage(snakemake) as job:
    params = snakemake.params
    job.result = select_for(job.paths.registry_db, params.mid_mjd, params.app_dec_deg, job.config.calibration)
