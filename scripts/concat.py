"""Subband Measurement Sets to one full-band Measurement Set."""

import os
from pathlib import Path

from contimg.paths import staged
from contimg.processes import CLUSTER_NODE
from contimg.stages.job import stage
from contimg.store.staging import remove_group, remove_if_empty
from contimg.visibilities.conversion import concat_subbands

with stage(snakemake) as job:
    staging = Path(snakemake.input.subbands).parent
    job.result = concat_subbands(staged(staging, job.group, job.config), Path(snakemake.output.ms))
if (
    CLUSTER_NODE in os.environ
):  # Snakemake removes temporary files on the submitting host, which does not see these
    remove_group(staging, job.group)
    remove_if_empty(staging)
