"""Full-size imaging: a target with a realistic sky (catalogue, faint sources, spectral indices),
calibrated by another group; each backend's seconds, memory, fluxes and positions. Prints Markdown;
keeps nothing.

    python bench/imaging.py [speed] [accuracy] [cost] [differences]
"""

import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from astropy.io import fits

from bench.full_size import convert_and_concat, measured
from contimg.config import CataloguesConfig, Config, FlaggingConfig, PathsConfig
from contimg.simulate import Simulation, read_sky, simulate_group
from contimg.stages.apply import apply_set
from contimg.stages.image import image_group
from contimg.stages.prepare import prepare
from contimg.stages.solve import solve_group
from contimg.store.files import checksum, read_json, write_json
from contimg.visibilities import flag_versions
from contimg.visibilities.uvh5 import inspect, parse_name
from tests.accuracy import measure

mpl.use("Agg")
from matplotlib import pyplot as plt

CALIBRATOR = "2026-03-02T20:03:10"
NEXT = "2026-03-02T20:08:19"
TARGET = "2026-03-02T20:18:37"
DEC_DEG = 16.15
FAST_BACKENDS = ("wgridder", *(["wsclean"] if shutil.which("wsclean") else []))
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
SPAWN = multiprocessing.get_context("spawn")
BACKENDS = (*FAST_BACKENDS, "tclean")


def realistic_sky(folder: Path, faint: bool = True) -> tuple[list[dict], Path]:
    """Sources of the simulation, and the catalogue (CSV) that the pipeline is given: all but the
    faint ones.

    Faint sources: 4 to 50 mJy, number above S proportional to S^-0.8, 20 a square degree above 5
    mJy, as the NVSS has them.
    """
    lists = CataloguesConfig()
    rng = np.random.default_rng(11)
    sources = read_sky(lists.sky, lists.calibrators)
    for one in sources:
        one["alpha"] = float(np.clip(rng.normal(-0.7, 0.25), -1.5, 0.3))
    catalogue = folder / "catalogue.csv"
    columns = {
        "name": "name",
        "ra_deg": "ra",
        "dec_deg": "dec",
        "flux_jy": "flux",
        "alpha": "alpha",
    }
    pd.DataFrame({name: [s[key] for s in sources] for name, key in columns.items()}).to_csv(
        catalogue, index=False
    )
    if faint:
        number = int(20 * 6 * 3 * (5 / 4) ** 0.8)
        for k in range(number):
            flux = 0.004 * (1 - rng.random() * (1 - (50 / 4) ** -0.8)) ** (-1 / 0.8)
            sources.append(
                {
                    "name": f"faint {k}",
                    "ra": rng.uniform(344.5, 350.5),
                    "dec": rng.uniform(14.6, 17.6),
                    "flux": flux,
                    "alpha": float(rng.normal(-0.7, 0.25)),
                }
            )
    return sources, catalogue


def prepared(folder: Path, start: str, sources: list[dict], **options) -> tuple[Path, float]:
    """A simulated group's prepared Measurement Set, and its declination."""
    sim = Simulation(
        **{"start": start, "dec_deg": DEC_DEG, "antennas": 96, "channels": 48, "gain_seed": 7}
        | options
    )
    paths = simulate_group(folder, sim, sources, CataloguesConfig().stations)
    ms = folder / f"{start}.ms"
    convert_and_concat({parse_name(p.name)[1]: p for p in paths}, folder / "staging", ms, 2)
    outline = inspect(paths[0])
    for path in paths:
        path.unlink()
    prepare(ms, FlaggingConfig(), CataloguesConfig().stations)
    flag_versions.save(ms)
    return ms, outline.app_dec_deg


def make(
    folder: Path, faint: bool = True, target: str = TARGET, **options
) -> tuple[Path, float, Config]:
    """A calibrated target and the configuration to image it with."""
    folder.mkdir(exist_ok=True)
    sources, catalogue = realistic_sky(folder, faint)
    config = Config(
        paths=PathsConfig(products=folder / "products", state=folder / "state"),
        catalogues=CataloguesConfig(sky=catalogue),
    )
    ms, dec_deg = prepared(folder, CALIBRATOR, sources, seed=1, **options)
    solved = solve_group(ms, CALIBRATOR, dec_deg, config, folder / "casa.log")
    ms, dec_deg = prepared(folder, target, sources, seed=2, **options)
    sums = [checksum(Path(path)) for path in solved["tables"].values()]
    chosen = {
        "set_name": CALIBRATOR,
        "science": True,
        "tables": solved["tables"],
        "checksums": sums,
    }
    apply_set(ms, target, chosen, dec_deg, config, None)
    return ms, dec_deg, config


def image(folder: Path, ms: Path, dec_deg: float, config: Config, **options) -> dict:
    """The image stage on one Measurement Set."""
    config = config.model_copy(update={"imaging": config.imaging.model_copy(update=options)})
    chosen = {
        "set_name": CALIBRATOR,
        "set_mid_mjd": 0.0,
        "cal_field": "",
        "flux_scale": "",
        "science": True,
    }
    converted = {"app_dec_deg": dec_deg, "subbands": list(range(16))}
    return image_group(ms, ms.stem, config, converted, chosen, 2, folder / "stage.log")


def _timed(folder: Path, ms: Path, dec_deg: float, config: Config, options: dict) -> None:
    """An image, its seconds, and how many of these are ducc0's own."""
    import ducc0

    spent = [0.0]

    def timed(function):
        def inside(**arguments):
            begin = time.perf_counter()
            result = function(**arguments)
            spent[0] += time.perf_counter() - begin
            return result

        return inside

    for name in ("vis2dirty", "dirty2vis"):
        setattr(ducc0.wgridder, name, timed(getattr(ducc0.wgridder, name)))
    begin = time.perf_counter()
    result = image(folder, ms, dec_deg, config, **options)
    seconds = {"seconds": time.perf_counter() - begin, "ducc_s": spent[0]}
    write_json(folder / "timed.json", result | seconds)


def speed(folder: Path) -> None:
    """Every backend on the same calibrated data and the same averaging; then the default, and a
    quick look."""
    ms, dec_deg, config = make(folder)
    common = {"imsize": 2048, "niter": 1000}
    print(
        "| what | seconds | memory (GB) | noise (mJy/beam) | sources | flux ratio | offset "
        "|\n|---|---|---|---|---|---|---|"
    )
    cases = [
        (
            f"{name}, 2048 x 3 arcsec, 1000 iterations, 4 channels averaged",
            {"backend": name, "average_channels": 4} | common,
        )
        for name in BACKENDS
    ]
    cases += [
        ("wgridder, the same, averaged as it is by default", common),
        ("wgridder, default (4800 x 3 arcsec)", {}),
        ("wgridder, quick look", {"mode": "quick"}),
    ]
    image(folder, ms, dec_deg, config, mode="quick")  # compiled, and the data in the page cache
    for name, options in cases:
        _, peak_gb = measured(_timed, folder, ms, dec_deg, config, options, context=SPAWN)
        result = read_json(folder / "timed.json")
        seconds, check = result["seconds"], result["catalogue"]
        noise_mjy, found = result["rms_jy"] * 1e3, f"{check['found']} of {check['expected']}"
        print(
            f"| {name} | {seconds:.1f} | {peak_gb:.1f} | {noise_mjy:.2f} | {found} | "
            f"{check['flux_ratio']} "
            f'| {check["offset_arcsec"]}" |',
            flush=True,
        )


def accuracy(folder: Path) -> None:
    """Fluxes and positions of every source above 50 sigma out to the 30 % point of the beam,
    against what was simulated."""
    print(
        "| sky | imager | sources | flux ratio | of sigma (rms) | east, north (mean) | of sigma "
        "(rms) | noise / thermal |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for sky, start, faint, backends in (
        ("catalogue", TARGET, False, FAST_BACKENDS),
        ("12 Jy 1.6 deg off", NEXT, False, FAST_BACKENDS),
        ("with faint sources", TARGET, True, BACKENDS),
    ):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            place = Path(work)
            ms, dec_deg, config = make(place, faint, start, channels=12)
            for backend in backends:
                result = image(place, ms, dec_deg, config, backend=backend)
                files = (result["images"][name] for name in ("image.fits", "pbcor.fits"))
                found = measure(*files, place / f"truth.{start}.json", least_snr=50, least_beam=0.3)
                blur_arcsec = (
                    np.sqrt(result["beam_major_arcsec"] * result["beam_minor_arcsec"])
                    / 2
                    / found.snr
                )
                flux = (found.ratio - 1) / np.hypot(1 / found.snr, 0.02)
                offset = np.concatenate([found.east_arcsec, found.north_arcsec]) / np.tile(
                    np.hypot(blur_arcsec, 0.3), 2
                )
                east, north = found.east_arcsec.mean(), found.north_arcsec.mean()
                words = [
                    sky,
                    backend,
                    len(flux),
                    f"{np.median(found.ratio):.4f}",
                    f"{np.sqrt(np.mean(flux**2)):.2f}",
                    f'{east:+.3f}", {north:+.3f}"',
                    f"{np.sqrt(np.mean(offset**2)):.2f}",
                    f"{result['rms_jy'] / result['thermal_jy']:.2f}",
                ]
                print(f"| {' | '.join(map(str, words))} |", flush=True)


def cost(folder: Path) -> None:
    """Seconds against pixels and against visibilities, beside ducc0's own: a table and a plot."""
    ms, dec_deg, config = make(folder)
    image(folder, ms, dec_deg, config, mode="quick")  # compiled, and the data in the page cache
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    print("| pixels | million visibilities | seconds | of these ducc0 |\n|---|---|---|---|")
    cases = (
        ("pixels on a side", [{"imsize": n} for n in (1200, 2400, 4800, 9600)]),
        ("million visibilities", [{"average_channels": n} for n in (96, 24, 8, 4, 2, 1)]),
    )
    for axes, (label, all_options) in zip(panels, cases, strict=True):
        points = []
        for options in all_options:
            cell = 3.0 if options.get("imsize", 0) <= 4800 else 1.5
            options |= {"cell_arcsec": cell}
            measured(_timed, folder, ms, dec_deg, config, options, context=SPAWN)
            result = read_json(folder / "timed.json")
            million = result["visibilities"] / 1e6
            x = million if "average_channels" in options else result["imsize"]
            points.append((x, result["seconds"], result["ducc_s"]))
            print(
                f"| {result['imsize']} | {million:.1f} | {points[-1][1]:.1f} | "
                f"{points[-1][2]:.1f} |",
                flush=True,
            )
        x, seconds, of_ducc = np.array(points).T
        axes.plot(x, seconds, "o-", label="Measurement Set to products")
        axes.plot(x, of_ducc, "s--", label="of these, ducc0's transforms")
        axes.set(xlabel=label, xscale="log", ylim=(0, None))
        axes.set_xticks(x, [f"{v:.0f}" if v > 10 else f"{v:.2g}" for v in x])
        axes.minorticks_off()
    panels[0].set(ylabel="Seconds, two cores")
    panels[0].legend(frameon=False)
    figure.savefig(PICTURES / "imaging-cost.png", dpi=110)


def differences(folder: Path) -> None:
    """What the three imagers' images of the same data differ by, as a picture."""
    ms, dec_deg, config = make(folder)
    images = {}
    for backend in BACKENDS:
        result = image(folder, ms, dec_deg, config, imsize=2048, niter=3000, backend=backend)
        images[backend] = fits.getdata(result["images"]["image.fits"]).squeeze() * 1e3
    ours = images.pop("wgridder")
    figure, panels = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
    shown = {"wgridder": ours} | {f"{name} - wgridder": v - ours for name, v in images.items()}
    for axes, (name, values) in zip(panels, shown.items(), strict=True):
        half = len(values) * 3 / 3600 / 2
        picture = axes.imshow(
            values,
            origin="lower",
            vmin=-1.5,
            vmax=1.5,
            cmap="RdBu_r",
            extent=(half, -half, -half, half),
        )
        rms = 1.4826 * np.median(np.abs(values - np.median(values)))
        axes.set(title=f"{name}: rms {rms:.3f} mJy/beam", xlabel="deg to the east")
    panels[0].set(ylabel="deg to the north")
    figure.colorbar(picture, ax=panels, label="mJy/beam", shrink=0.8)
    figure.savefig(PICTURES / "imagers.png", dpi=75)


if __name__ == "__main__":
    asked = sys.argv[1:] or ["speed", "accuracy"]
    with tempfile.TemporaryDirectory() as work:
        for name in asked:
            {one.__name__: one for one in (speed, accuracy, cost, differences)}[name](Path(work))
