"""The stage `convert`: raw subband files to subband Measurement Sets in staging."""

import os

from contimg.processes import CLUSTER_NODE
from contimg.stages.job import Job, log
from contimg.store.staging import make, require_room, sweep
from contimg.visibilities.conversion import convert_group


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    if CLUSTER_NODE in os.environ:
        make(job.staging)
        sweep(job.paths, job.staging, job.group)
    raw_bytes = sum(path.stat().st_size for path in job.files.values())
    needs = [(job.staging, raw_bytes), (job.ms.parent, 2 * raw_bytes)]
    require_room(needs, f"group {job.group}")
    return convert_group(job.files, job.staged, job.config, job.threads, log.info)
