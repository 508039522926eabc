"""Subband Measurement Sets to one full-band Measurement Set."""

import os
from pathlib import Path

from contimg.conversion import concat_subbands
from contimg.stage import CLUSTER_NODE, stage
from contimg.staging import remove_group, remove_if_empty

with stage(snakemake) as job:
    subbands = [Path(path) for path in snakemake.input.subbands]
    job.result = concat_subbands(subbands, Path(snakemake.output.ms))
if CLUSTER_NODE in os.environ:  # Snakemake removes temporary files on the submitting host, which does not see these
    remove_group(subbands[0].parent.parent, job.group)
    remove_if_empty(subbands[0].parent.parent)
