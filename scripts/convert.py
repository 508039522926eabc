"""Raw subband files to subband Measurement Sets in staging."""

import os
from pathlib import Path

from contimg.conversion import convert_group
from contimg.stage import CLUSTER_NODE, log, stage
from contimg.staging import require_room, sweep
from contimg.uvh5 import parse_name

with stage(snakemake) as job:
    files = {parse_name(Path(f).name)[1]: Path(f) for f in snakemake.input.files}
    outputs = [Path(path) for path in snakemake.output.subbands]
    if CLUSTER_NODE in os.environ:
        sweep(job.paths, outputs[0].parent.parent, job.group)
    raw_bytes = sum(path.stat().st_size for path in files.values())
    needs = [(outputs[0].parent.parent, raw_bytes), (job.paths.ms(job.group).parent, 2 * raw_bytes)]
    require_room(needs, f"group {job.group}")
    job.result = convert_group(files, outputs, job.config, snakemake.threads, log.info)
