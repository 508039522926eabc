"""A day's images against time."""

from pathlib import Path

from contimg.config import from_mapping
from contimg.paths import Paths
from contimg.plots.day import plot_day
from contimg.plots.style import save_plot
from contimg.products.tables import images_of_day
from contimg.store import db

date = snakemake.wildcards.date
with db.reading(Paths.of(from_mapping(snakemake.config)).products_db) as session:
    images = images_of_day(session, date) if session else []
save_plot(lambda: plot_day(date, images), Path(snakemake.output.plot))
Path(snakemake.log[0]).write_text(f"{date}: {len(images)} images\n")
