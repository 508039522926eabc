"""A day's images against time."""

from pathlib import Path

from contimg import db
from contimg.config import from_mapping
from contimg.paths import Paths
from contimg.products import images_of_day
from contimg.qa import plot_day, save_plot

date = snakemake.wildcards.date
with db.reading(Paths.of(from_mapping(snakemake.config)).products_db) as session:
    images = images_of_day(session, date) if session else []
save_plot(lambda: plot_day(date, images), Path(snakemake.output.plot))
Path(snakemake.log[0]).write_text(f"{date}: {len(images)} images\n")
