"""Commands on results: provenance, verify, export, retention."""

import json
from pathlib import Path
from typing import Annotated

import typer

from contimg.cli.shared import AsJson, ConfigFiles, command, site
from contimg.paths import Paths


@command
def provenance(
    image: Annotated[
        str,
        typer.Argument(
            help="Path or file name of an image or a mosaic, a group id, TRACT or TRACT.DAY."
        ),
    ],
    at: Annotated[
        str | None, typer.Option(help="RA,DEC in deg: of a mosaic, only images that show it.")
    ] = None,
    crate: Annotated[
        Path | None,
        typer.Option(help="Write a Process Run Crate (RO-Crate) there: a folder, or a .zip file."),
    ] = None,
    configfile: ConfigFiles = None,
):
    """Where an image comes from: raw files, tables, configuration, versions, commands and seconds,
    as JSON."""
    from contimg.products import provenance
    from contimg.products.crate import write_crate

    place = None
    if at:
        from contimg.mosaics.tracts import place_of_words

        place = place_of_words(at)
    config = site(configfile, begun=True)
    found = provenance.provenance(config, image, place)
    if crate is None:
        print(json.dumps(found, indent=1))
        return
    print(f"{crate}: {', '.join(write_crate(Paths.of(config), found, crate))}")


@command
def verify(configfile: ConfigFiles = None):
    """Whether every product is in the databases, on disk, and as it was when it was recorded.
    Status 1 when not."""
    from contimg.products import provenance, publishing

    found = 0
    config = site(configfile, begun=True)
    for line in provenance.verify(config):
        print(line, flush=True)
        found += 1
    publishing.check(config)  # images of sets that were altered are marked
    print(
        f"{found} products are missing, altered or unknown"
        if found
        else "every product is in its place and unaltered"
    )
    raise typer.Exit(1 if found else 0)


@command
def export(
    output: Annotated[
        Path, typer.Argument(help="File to write: .vot or .xml (VOTable), .csv or .ecsv.")
    ],
    what: Annotated[
        str, typer.Option(help="obscore, images, ms_index, qa_artifacts or caltables.")
    ] = "obscore",
    configfile: ConfigFiles = None,
):
    """Write an index as a table: by default the images as an archive lists them (IVOA ObsCore)."""
    from contimg.products.export import export as write

    print(f"{write(site(configfile, begun=True), what, output)} rows of {what} in {output}")


@command
def retention(configfile: ConfigFiles = None, as_json: AsJson = False):
    """How much room is left and for how long, what may be deleted, and what was. Deletes nothing:
    runs do, at their end."""
    from contimg.products.retention import room

    found = room(site(configfile))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    mean, hours = found["bytes_a_group"], found["hours_left"]
    room_left = f"{found['free_bytes'] / 1e9:.0f} GB free"
    print(
        room_left
        + (
            f"; {mean / 1e9:.2f} GB a group: room for {hours:.1f} hours of observing"
            if mean
            else ""
        )
    )
    for title in ("may_be_deleted", "deleted"):
        numbers = (f"{number} {kind.replace('_', ' ')}" for kind, number in found[title].items())
        print(f"{title.replace('_', ' ')}: {', '.join(numbers)}")
