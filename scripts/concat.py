"""Subband Measurement Sets to one full-band Measurement Set."""

import os
from pathlib import Path

from contimg.conversion import concat_subbands
from contimg.paths import staged
from contimg.stage import CLUSTER_NODE, stage
from contimg.staging import remove_group, remove_if_empty

with stage(snakemake) as job:
    staging = Path(snakemake.input.subbands).parent
    job.result = concat_subbands(staged(staging, job.group, job.config), Path(snakemake.output.ms))
if CLUSTER_NODE in os.environ:  # Snakemake removes temporary files on the submitting host, which does not see these
    remove_group(staging, job.group)
    remove_if_empty(staging)
