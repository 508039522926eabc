"""Plots of one group."""

from contimg.stages.job import stage
from contimg.stages.qa import plot_group
from contimg.store.files import read_json

with stage(snakemake) as job:
    inputs = snakemake.input
    imaged, chosen, prepared = (
        read_json(f) for f in (inputs.imaged, inputs.chosen, inputs.prepared)
    )
    artifacts, failed = plot_group(job.group, job.config, imaged, chosen, prepared)
    job.result = {"artifacts": artifacts, "not_drawn": failed}
