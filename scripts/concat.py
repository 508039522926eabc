"""Subband Measurement Sets to one full-band Measurement Set."""

import os
from pathlib import Path

from contimg.processes import CLUSTER_NODE
from contimg.stages import concat
from contimg.stages.job import run_script
from contimg.store.staging import remove_group, remove_if_empty

run_script(snakemake, concat.run)
# Snakemake removes temporary files on the submitting host, which does not see these.
if CLUSTER_NODE in os.environ:
    staging = Path(snakemake.input.subbands).parent
    remove_group(staging, snakemake.wildcards.group)
    remove_if_empty(staging)
