"""A day's images against time."""

from pathlib import Path

from contimg.config import from_mapping
from contimg.stages import day

date = snakemake.wildcards.date
number = day.run(from_mapping(snakemake.config), date, Path(snakemake.output.plot))
Path(snakemake.log[0]).write_text(f"{date}: {number} images\n")
