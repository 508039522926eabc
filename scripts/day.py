"""A day's images against time."""

from pathlib import Path

from contimg import db
from contimg.config import from_mapping
from contimg.paths import Paths
from contimg.products import images_of_day
from contimg.qa import plot_day

date = snakemake.wildcards.date
with db.reading(Paths.of(from_mapping(snakemake.config)).products_db) as session:
    plot_day(date, images_of_day(session, date) if session else [], Path(snakemake.output.plot))
