"""A calibrator group's tables into the registry."""

from contimg.files import read_json
from contimg.publishing import mark
from contimg.registry import register_solved
from contimg.stage import stage

with stage(snakemake) as job:
    solved = read_json(snakemake.input.solved)
    job.result = register_solved(job.paths.registry_db, solved, job.config.calibration, job.config.gates)
    mark(job.config)
