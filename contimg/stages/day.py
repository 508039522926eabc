"""A day's images in one plot: what the rule `day` makes, which is no stage of a group."""

from pathlib import Path

from contimg.config import Config
from contimg.paths import Paths
from contimg.plots.day import plot_day
from contimg.plots.style import save_plot
from contimg.products.tables import images_of_day
from contimg.store import db


def run(config: Config, date: str, plot: Path) -> int:
    """Plot a day; returns how many images it has."""
    with db.reading(Paths.of(config).products_db) as session:
        images = images_of_day(session, date) if session else []
    save_plot(lambda: plot_day(date, images), plot)
    return len(images)
