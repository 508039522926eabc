"""Which calibration set a group gets, and why."""

from contimg.calibration.registry import select_for
from contimg.products.publishing import mark
from contimg.stages.job import stage

with stage(snakemake) as job:
    params = snakemake.params
    try:
        job.result = select_for(
            job.paths.registry_db, params.mid_mjd, params.app_dec_deg, job.config.calibration
        )
    finally:
        mark(job.config)  # a set that was refused for altered tables made images, too
