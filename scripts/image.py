"""The calibrated Measurement Set to images."""

from pathlib import Path

from contimg.errors import ValidationError
from contimg.stages.image import image_group
from contimg.stages.job import stage
from contimg.store.files import read_json

with stage(snakemake) as job:
    converted, chosen, applied = (
        read_json(snakemake.input[name]) for name in ("converted", "chosen", "applied")
    )
    if applied["set_name"] != chosen["set_name"]:
        raise ValidationError(
            f"group {job.group}: applied another set than {chosen['set_name']}. contimg reprocess "
            f"{job.group} --from apply"
        )
    ms = Path(snakemake.input.ms)
    job.result = image_group(
        ms, job.group, job.config, converted, chosen, snakemake.threads, job.logfile, applied
    )
