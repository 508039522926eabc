"""The stage `register`: a calibrator group's tables into the registry."""

from contimg.calibration.registry import register_solved
from contimg.products.publishing import mark
from contimg.stages.job import Job


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    config, solved = job.config, job.result_of("solve")
    found = register_solved(job.paths.registry_db, solved, config.calibration, config.gates)
    mark(config)
    return found
