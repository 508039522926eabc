"""The stage `index`: a finished group into the databases."""

from contimg.products.record import index_group
from contimg.stages.job import Job


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    return index_group(job.group, job.config)
