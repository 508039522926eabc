"""The command line: `contimg COMMAND`."""

from contimg.cli import instrument, lightcurves, mosaics, operate, results, set_up  # noqa: F401  (they register their commands)
from contimg.cli.registry import registry_app
from contimg.cli.shared import app

app.add_typer(registry_app, name="registry")
