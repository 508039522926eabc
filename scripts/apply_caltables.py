"""CORRECTED_DATA in Jy, with weights in Jy^-2."""

from pathlib import Path

from contimg.caltables import apply
from contimg.preparation import weigh
from contimg.stage import read_json, stage

with stage(snakemake) as job:
    chosen = read_json(snakemake.input.chosen)
    tables = {kind: Path(path) for kind, path in chosen["tables"].items()}
    ms = Path(snakemake.input.ms)
    data, flags, rows = apply(ms, tables, job.logfile)
    job.result = {"set_name": chosen["set_name"], **weigh(ms, data, flags, rows)}
