"""A finished group into the databases."""

from contimg.products.record import index_group
from contimg.stages.job import stage

with stage(snakemake) as job:
    job.result = index_group(job.group, job.config)
