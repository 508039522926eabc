"""What all commands share: options, the site, tables, and how an error is said."""

import functools
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from contimg import config as configuration
from contimg.errors import ContimgError, RequestError
from contimg.paths import Paths
from contimg.runs.session import require_databases_here
from contimg.telescope import TELESCOPE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help=f"Continuum imaging of {TELESCOPE.name} drift scans.",
)
ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--configfile", help="YAML on top of config/config.yaml; may be given again."),
]
AsJson = Annotated[bool, typer.Option("--json", help="For a program instead of a person.")]
Groups = Annotated[
    list[str] | None, typer.Argument(help="Group ids, for example 2026-01-25T22:26:05.")
]
_WIDTH_WITHOUT_TERMINAL = 200


def site(configfile: list[Path] | None, begun: bool = False) -> configuration.Config:
    """The configuration, for commands that look into the databases: refused on a host that does not
    have them.

    begun  the command makes no sense where nothing was done yet: most probably these are not the
           folders that were meant
    """
    config = configuration.load(configfile or ())
    require_databases_here(config)
    paths = Paths.of(config)
    if begun and not any(
        path.exists() for path in (paths.ingest_db, paths.registry_db, paths.products_db)
    ):
        raise RequestError(
            f"nothing is known here: {paths.databases.absolute()} has no databases, so no run or "
            "watcher has worked with this configuration yet"
        )
    return config


def console_of() -> Console:
    """Tables as wide as the terminal; a fixed width where there is none."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False)


def reported(function):
    """What a command refuses is said in one line, with exit status 1."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (ContimgError, SQLAlchemyError, OSError) as error:
            print(f"contimg {function.__name__}: {error}", file=sys.stderr)
            raise typer.Exit(1) from None

    return wrapped


def command(function):
    """Register a command."""
    return app.command()(reported(function))
