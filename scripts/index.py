"""A finished group into the databases."""

from contimg.indexing import index_group
from contimg.stage import stage

with stage(snakemake) as job:
    job.result = index_group(job.group, job.config)
