"""Raw subband files to subband Measurement Sets in staging."""

import os
from pathlib import Path

from contimg.conversion import convert_group
from contimg.paths import staged
from contimg.stage import CLUSTER_NODE, log, stage
from contimg.staging import make, require_room, sweep
from contimg.uvh5 import parse_name

with stage(snakemake) as job:
    files = {parse_name(Path(f).name)[1]: Path(f) for f in snakemake.params.files}
    staging = Path(snakemake.output.subbands).parent
    if CLUSTER_NODE in os.environ:
        make(staging)
        sweep(job.paths, staging, job.group)
    raw_bytes = sum(path.stat().st_size for path in files.values())
    needs = [(staging, raw_bytes), (job.paths.ms(job.group).parent, 2 * raw_bytes)]
    require_room(needs, f"group {job.group}")
    job.result = convert_group(files, staged(staging, job.group, job.config), job.config, snakemake.threads, log.info)
