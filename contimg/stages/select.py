"""The stage `caltables`: which calibration set a group gets, and why."""

from contimg.calibration.registry import select_for
from contimg.products.publishing import mark
from contimg.stages.job import Job


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    try:
        return select_for(job.paths.registry_db, *job.pointing, job.config.calibration)
    finally:
        mark(job.config)  # a set that was refused for altered tables made images, too
