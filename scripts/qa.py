"""Plots of one group."""

from contimg.files import read_json
from contimg.qa import plot_group
from contimg.stage import stage

with stage(snakemake) as job:
    inputs = snakemake.input
    imaged, chosen, prepared = (read_json(f) for f in (inputs.imaged, inputs.chosen, inputs.prepared))
    artifacts, failed = plot_group(job.group, job.config, imaged, chosen, prepared)
    job.result = {"artifacts": artifacts, "not_drawn": failed}
