"""Raw subband files to subband Measurement Sets in staging."""

import os
from pathlib import Path

from contimg.paths import staged
from contimg.processes import CLUSTER_NODE
from contimg.stages.job import log, stage
from contimg.store.staging import make, require_room, sweep
from contimg.visibilities.conversion import convert_group
from contimg.visibilities.uvh5 import parse_name

with stage(snakemake) as job:
    files = {parse_name(Path(f).name)[1]: Path(f) for f in snakemake.params.files}
    staging = Path(snakemake.output.subbands).parent
    if CLUSTER_NODE in os.environ:
        make(staging)
        sweep(job.paths, staging, job.group)
    raw_bytes = sum(path.stat().st_size for path in files.values())
    needs = [(staging, raw_bytes), (job.paths.ms(job.group).parent, 2 * raw_bytes)]
    require_room(needs, f"group {job.group}")
    job.result = convert_group(
        files, staged(staging, job.group, job.config), job.config, snakemake.threads, log.info
    )
