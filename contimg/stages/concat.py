"""The stage `concat`: subband Measurement Sets to one full-band Measurement Set."""

from contimg.stages.job import Job
from contimg.visibilities.conversion import concat_subbands


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    return concat_subbands(job.staged, job.ms)
