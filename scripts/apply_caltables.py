"""CORRECTED_DATA in Jy, with weights in Jy^-2."""

from pathlib import Path

from contimg.paths import FAST_SUFFIX
from contimg.stages.apply_caltables import apply_set
from contimg.stages.job import stage
from contimg.store.files import read_json

with stage(snakemake) as job:
    chosen, converted = read_json(snakemake.input.chosen), read_json(snakemake.input.converted)
    of_set = job.paths.result(chosen["set_name"].removesuffix(FAST_SUFFIX), "solve")
    solved = read_json(of_set) if of_set.exists() else None
    ms = Path(snakemake.input.ms)
    job.result = apply_set(ms, chosen, converted["app_dec_deg"], job.config, job.logfile, solved)
