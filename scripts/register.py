"""A calibrator group's tables into the registry."""

from contimg.calibration.registry import register_solved
from contimg.products.publishing import mark
from contimg.stages.job import stage
from contimg.store.files import read_json

with stage(snakemake) as job:
    solved = read_json(snakemake.input.solved)
    job.result = register_solved(
        job.paths.registry_db, solved, job.config.calibration, job.config.gates
    )
    mark(job.config)
