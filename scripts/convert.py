"""Raw subband files to subband Measurement Sets in staging."""

from pathlib import Path

from contimg.conversion import convert_group
from contimg.stage import log, stage
from contimg.uvh5 import parse_name

with stage(snakemake) as job:
    files = {parse_name(Path(f).name)[1]: Path(f) for f in snakemake.input.files}
    outputs = {sb: Path(path) for sb, path in enumerate(snakemake.output.subbands)}
    job.result = convert_group(files, outputs, job.config.conversion.telescope_name, snakemake.threads, log.info)
