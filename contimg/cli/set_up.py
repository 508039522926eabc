"""Commands to set up and show a site: simulate, selftest, catalog, serve."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import typer

from contimg import config as configuration
from contimg.cli.shared import ConfigFiles, command, site
from contimg.errors import ContimgError, RequestError
from contimg.paths import Paths
from contimg.runs.session import snakemake_command
from contimg.telescope import DSA110, TELESCOPE, VARIABLE


@command
def simulate(
    folder: Annotated[
        Path | None, typer.Argument(help="Where to write; default: paths.incoming.")
    ] = None,
    configfile: ConfigFiles = None,
    if_empty: Annotated[
        bool, typer.Option(help="Only when the folder has no subband files and no group is known.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(help="UTC of one group; without it, the demo: a calibrator and a target."),
    ] = None,
    dec: Annotated[float, typer.Option(help="Apparent declination, deg.")] = 16.15,
    antennas: Annotated[int, typer.Option(help="Of the active ones.")] = 48,
    channels: Annotated[int, typer.Option(help="Per subband; the telescope has 48.")] = 12,
    integrations: Annotated[int, typer.Option(help="Of 12.9 s.")] = 24,
    seed: Annotated[int, typer.Option(help="Noise and file-name skew.")] = 1,
    gain_seed: Annotated[int, typer.Option(help="Antenna gains.")] = 1,
    skew: Annotated[float, typer.Option(help="Spread of the file names, s.")] = 30.0,
    rfi: Annotated[bool, typer.Option(help="Add interference.")] = False,
    dead: Annotated[
        list[int] | None, typer.Option(help="Station that sees noise only; may be given again.")
    ] = None,
    missing: Annotated[
        list[int] | None, typer.Option(help="Subband never written; may be given again.")
    ] = None,
    truncated: Annotated[
        list[int] | None, typer.Option(help="Subband cut off; may be given again.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Source, by name, that is not there; may be given again."),
    ] = None,
    sefd_scatter: Annotated[
        float, typer.Option(help="Scatter of ln(noise) among the receivers.")
    ] = 0.0,
    far: Annotated[
        list[str] | None,
        typer.Option(help="Cas A, Cyg A, Tau A, Vir A, Sun in the sidelobes; again."),
    ] = None,
    sefd: Annotated[
        float | None, typer.Option(help="Of the median receiver, Jy; 8016 measured in 2026.")
    ] = None,
    smeared: Annotated[
        bool, typer.Option(help="By integrations and channels, as the correlator does.")
    ] = True,
    moved: Annotated[
        float, typer.Option(help="Phases since the gains of --gain-seed, deg rms.")
    ] = 0.0,
    moved_share: Annotated[float, typer.Option(help="Amplitudes since then, relative rms.")] = 0.0,
    walk: Annotated[float, typer.Option(help="Phases, deg rms from integration to next.")] = 0.0,
    drift: Annotated[float, typer.Option(help="Phases, deg rms from first to last.")] = 0.0,
    step: Annotated[
        list[str] | None,
        typer.Option(help="STATION:INTEGRATION:DEG, a phase that jumps; may be given again."),
    ] = None,
    faint: Annotated[int, typer.Option(help="Sources that no catalogue has, 2 to 50 mJy.")] = 0,
    doubles: Annotated[float, typer.Option(help="Share of the sources that are two.")] = 0.0,
    vanished: Annotated[float, typer.Option(help="Share that is not there.")] = 0.0,
    exchanged: Annotated[
        list[str] | None,
        typer.Option(help="STATION:STATION whose cables are exchanged; may be given again."),
    ] = None,
    exchanged_polarisations: Annotated[
        list[int] | None, typer.Option(help="Station whose X is Y; may be given again.")
    ] = None,
    further: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME=VALUE",
            help="Any option of contimg.simulate.Simulation, its value as JSON; again.",
        ),
    ] = None,
):
    """Write simulated subband files in the telescope's format, with their truth beside them."""
    from contimg.simulate import Array, Simulation, read_sky, simulate_demo, simulate_group

    config = configuration.load(configfile or ())
    folder, lists = folder or config.paths.incoming, config.catalogues
    if if_empty and (Paths.of(config).ingest_db.exists() or any(folder.glob("*_sb??*.hdf5"))):
        return
    other = TELESCOPE != DSA110
    if start is None and other:
        if if_empty:
            return
        raise RequestError(f"the demo is of the DSA-110: name a --start for {TELESCOPE.name}")
    begin = time.perf_counter()
    print(f"simulating into {folder} ...", flush=True)
    try:
        if start is None:
            folder.mkdir(parents=True, exist_ok=True)
            # whole, or not there
            with tempfile.TemporaryDirectory(dir=folder, prefix=".demo.") as work:
                simulate_demo(Path(work), lists.sky, lists.calibrators, lists.stations)
                written = [
                    path.replace(folder / path.name) for path in sorted(Path(work).iterdir())
                ]
        else:
            options = Simulation(
                start=start,
                dec_deg=dec,
                antennas=antennas,
                channels=channels,
                integrations=integrations,
                seed=seed,
                gain_seed=gain_seed,
                skew_s=skew,
                rfi=rfi,
                dead=tuple(dead or ()),
                missing=tuple(missing or ()),
                truncated=tuple(truncated or ()),
                without=tuple(without or ()),
                sefd_scatter=sefd_scatter,
                far=tuple(far or ()),
                sefd_jy=sefd,
                smeared=smeared,
                moved_deg=moved,
                moved_share=moved_share,
                walk_deg=walk,
                drift_deg=drift,
                steps=tuple(_numbers(text, int, int, float) for text in step or ()),
                faint=faint,
                doubles=doubles,
                vanished=vanished,
                exchanged=tuple(_numbers(text, int, int) for text in exchanged or ()),
                exchanged_polarisations=tuple(exchanged_polarisations or ()),
                subbands=config.ingest.expected_subbands,
            )
            if other:
                place = TELESCOPE.model_dump(include={"latitude_rad", "longitude_rad", "height_m"})
                array = Array(
                    telescope=TELESCOPE.file_names[0],
                    dish_m=TELESCOPE.dish_diameter_m,
                    integration_s=TELESCOPE.group_s / integrations,
                    out_of_order=(),
                    **place,
                )
                options = replace(options, array=array)
            options = replace(options, **dict(_setting(text) for text in further or ()))
            written = simulate_group(
                folder, options, read_sky(lists.sky, lists.calibrators), lists.stations
            )
    except ValueError as error:
        raise RequestError(str(error)) from None
    size_mb = sum(f.stat().st_size for f in written) / 1e6
    print(f"{len(written)} files, {size_mb:.0f} MB, in {time.perf_counter() - begin:.0f} s")


def _setting(text: str) -> tuple[str, object]:
    """NAME=VALUE as an option of the simulator; raises ValueError for what it does not have."""
    from contimg.simulate import Simulation

    name, _, value = text.partition("=")
    known = sorted({one.name for one in fields(Simulation)} - {"array"})
    if name not in known:
        raise ValueError(f"--with {text}: expected one of {', '.join(known)}")
    try:
        found = json.loads(value)
    except ValueError:
        found = value  # a word needs no quotes
    return name, _tuples(found)


def _tuples(value):
    """Lists of JSON, also within lists, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _numbers(text: str, *kinds: type) -> tuple:
    """Numbers of these kinds, separated by colons; raises ValueError for other text."""
    words = text.split(":")
    if len(words) != len(kinds):
        raise ValueError(f"{text!r}: expected {len(kinds)} numbers with colons between")
    return tuple(kind(word) for kind, word in zip(kinds, words, strict=True))


@command
def selftest():
    """Image one tiny simulated group of the DSA-110 in a temporary folder: everything is installed,
    and compiled for the runs to come."""
    if os.environ.pop(VARIABLE, None):  # this process works for another telescope
        os.execv(sys.executable, [sys.executable, *sys.argv])
    from contimg.simulate import Simulation, read_sky, simulate_group

    with tempfile.TemporaryDirectory(prefix="contimg-selftest-") as work:
        folder, lists = Path(work), configuration.load().catalogues
        options = Simulation(
            start="2026-03-02T20:03:10",
            antennas=16,
            channels=2,
            integrations=6,
            seed=1,
            gain_seed=1,
        )
        simulate_group(
            folder / "incoming", options, read_sky(lists.sky, lists.calibrators), lists.stations
        )
        site = {
            "paths": {name: str(folder / name) for name in ("incoming", "products", "state")},
            "imaging": {"imsize": 512, "cell_arcsec": 16.0},
            "calibration": {"min_median_snr": 1e-3},
        }
        (folder / "site.json").write_text(json.dumps(site))
        begin = time.perf_counter()
        command = snakemake_command("profiles/local", [folder / "site.json"])
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if (
            outcome.returncode
            or not (folder / "products" / "results" / f"{options.start}.index.json").exists()
        ):
            raise ContimgError(
                f"a tiny group could not be imaged. What Snakemake said:\n{outcome.stderr[-4000:]}"
            )
    print(f"a tiny group was imaged in {time.perf_counter() - begin:.0f} s: everything works")


@command
def catalog(
    output: Annotated[
        Path,
        typer.Argument(help="File to write, .csv or indexed .sqlite3; name it in catalogues.sky."),
    ],
    configfile: ConfigFiles = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A FITS, VOTable or CSV file instead of the NVSS.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="With --from: name=NVSS, ra_deg=RAJ2000, ... where the file has other names."
        ),
    ] = None,
    flux_unit: Annotated[
        str | None,
        typer.Option(help="With --from: of its fluxes, where it does not say: Jy or mJy."),
    ] = None,
    ra: Annotated[
        float | None, typer.Option(help="Centre of a cone, deg; without it, the whole NVSS.")
    ] = None,
    dec: Annotated[float | None, typer.Option(help="Centre of a cone, deg.")] = None,
    radius: Annotated[float, typer.Option(help="Radius of the cone, deg.")] = 5.0,
    min_mjy: Annotated[float, typer.Option(help="Faintest source, mJy.")] = 2.5,
):
    """Get the NVSS (VizieR VIII/65), or take a catalogue that you have, checked, in the format that
    the workflow reads."""
    from contimg.sky.catalogues import download_nvss, read_table, write_catalogue

    configuration.load(configfile or ())
    if source is None:
        sky = download_nvss(
            output, None if ra is None or dec is None else (ra, dec), radius, min_mjy
        )
    else:
        named = [
            one.partition("=") for text in columns or () for one in text.replace(" ", "").split(",")
        ]
        sky = write_catalogue(
            output,
            read_table(source, {ours: theirs for ours, _, theirs in named}, flux_unit),
            str(source),
        )
    for problem in sky.problems:
        print(problem)
    print(f"{sky.number} sources in {output}; set catalogues.sky to it")


@command
def serve(
    configfile: ConfigFiles = None,
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: every one of this machine.")
    ] = "127.0.0.1",
    prefix: Annotated[str, typer.Option(help="Path under which a proxy shows it: /contimg.")] = "",
):
    """The page and the API. With CONTIMG_API_KEY in the environment, groups can be reprocessed from
    the page."""
    import uvicorn

    from contimg.web.app import make_app

    prefix = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
    app_of_site = make_app(site(configfile))
    print(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}{prefix}", flush=True)
    uvicorn.run(app_of_site, host=host, port=port, root_path=prefix, log_level="warning")
