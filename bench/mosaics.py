"""Tracts: seconds, memory and disk at full size; a strip of 30 groups on two days, and ten days of
three groups, through every stage from files in the telescope's format (48 antennas, 96 channels).
Prints Markdown and draws; keeps nothing else.

    python bench/mosaics.py size | strip [GROUPS [PICTURES]] | days [DAYS [PICTURES]]
"""

import resource
import shutil
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.time import Time, TimeDelta
from casacore import images
from scipy.ndimage import gaussian_filter

from bench.days import GROUP_S, SIDEREAL_S, sky_of
from contimg.config import Config, from_mapping
from contimg.imaging.files import Grid, _write_components, few_pixels
from contimg.imaging.interface import Beam
from contimg.imaging.peaks import bright_peaks
from contimg.mosaics.combine import Sum, noise_of_blocks
from contimg.mosaics.files import read_mosaic
from contimg.mosaics.tracts import crossed, tract_of
from contimg.paths import COMPONENTS_FITS, SMEARING_FITS, Paths
from contimg.products.mosaics import Piece
from contimg.products.record import bytes_on_disk
from contimg.stages.catalogue import list_sources
from contimg.stages.deep import add_days
from contimg.stages.difference import compare
from contimg.stages.hips import make_map
from contimg.stages.mosaic import combine
from contimg.store.files import checksum, read_json, remove, write_json
from tests.conftest import CALIBRATOR_START
from tests.violations import chain

TILES, STRIP = 12, "+16.1"
NEW = {"name": "day", "ra": 347.9, "dec": 16.35, "flux": 1e-3, "alpha": -0.7}


def _config(folder: Path, **sections) -> Config:
    return from_mapping(
        {"paths": {n: str(folder / n) for n in ("incoming", "products", "state")}} | sections
    )


def _piece(name: str, day: int, groups: list[str]) -> Piece:
    return Piece(name, day, tuple(groups), to_come=tuple(groups))


def _finished(paths: Paths, group: str, imaged: dict) -> None:
    """The results that a finished group has, as far as mosaics look at them."""
    write_json(paths.result(group, "image"), imaged)
    shown = imaged["images"].get("pbcor.fits") or imaged["images"]["residual"]
    sums = {imaged["images"].get("pbcor.fits", shown): checksum(Path(shown))}
    write_json(paths.result(group, "index"), {"checksums": sums})


# -- at full size


def _made_up(folder: Path, paths: Paths, group: str, ra_deg: float, seed: int) -> dict:
    """An image's files as the imaging stage leaves them, of noise and 200 sources."""
    rng, npix = np.random.default_rng(seed), 4800
    grid = Grid(npix, 3 / 3600, (ra_deg, float(STRIP)))
    noise = gaussian_filter(rng.normal(size=(npix, npix)).astype(np.float32), 2.2)
    noise *= 2e-4 / noise.std()
    l, m = grid.axes_lm()
    away_deg = np.degrees(np.hypot(l[:, None], m[None, :]))
    pb = np.exp(-4 * np.log(2) * (away_deg / 2.9) ** 2).astype(np.float32)
    written = {}
    for suffix, array in (("residual", noise), ("pb", pb)):
        as_fits = folder / f"{suffix}.fits"
        head = grid.wcs().to_header()
        fits.PrimaryHDU(np.ascontiguousarray(array.T)[None, None], head).writeto(
            as_fits, overwrite=True
        )
        written[suffix] = paths.image(group, suffix)
        written[suffix].parent.mkdir(parents=True, exist_ok=True)
        images.image(str(as_fits)).saveas(str(written[suffix]), overwrite=True)
    few, _ = few_pixels(grid)
    ones = np.ones((few.npix, few.npix), np.float32)
    written[SMEARING_FITS] = paths.image(group, SMEARING_FITS)
    head = few.wcs().to_header()
    fits.PrimaryHDU(ones[None, None], head).writeto(written[SMEARING_FITS], overwrite=True)
    written[COMPONENTS_FITS] = paths.image(group, COMPONENTS_FITS)
    components = np.column_stack([rng.uniform(0, npix, (200, 2)), rng.uniform(1e-3, 0.1, 200)])
    _write_components(
        written[COMPONENTS_FITS], components, components[:, 2], ones, grid, grid.wcs().to_header()
    )
    return {
        "images": {suffix: str(path) for suffix, path in written.items()}
        | {"image.pbcor": str(written["residual"])},
        "unpublishable": [],
        "mode": "full",
        "verdict": "good",
        "rms_jy": 2e-4,
        "beam_major_arcsec": 16.0,
        "beam_minor_arcsec": 14.0,
        "beam_pa_deg": 0.0,
        "start_mjd": 60000.0,
        "end_mjd": 60000.1,
        "freq_hz": 1.405e9,
        "bandwidth_hz": 187.5e6,
    }


def _alone(function, *args):
    """Seconds and largest memory (GB) of a function in a process of its own, and its result."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (function, args))


def _timed(function, args):
    begin = time.perf_counter()
    result = function(*args)
    seconds = time.perf_counter() - begin
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, result


def size(work: Path) -> None:
    """Seconds, memory and disk of each rule, twelve tiles a tract."""
    config = _config(work)
    paths, name = Paths.of(config), f"{STRIP}_100"
    tract = tract_of(name, config.mosaics)
    groups = [f"2026-03-02T20:{k:02d}:00" for k in range(TILES)]
    offsets = (np.arange(TILES) - (TILES - 1) / 2) * 0.75  # all of them on the tract
    for k, group in enumerate(groups):
        imaged = _made_up(work, paths, group, tract.centre_deg[0] + offsets[k], k)
        write_json(paths.result(group, "image"), imaged)
        shown = imaged["images"]["image.pbcor"]
        write_json(paths.result(group, "index"), {"checksums": {shown: f"sum {k}"}})
    print(f"tract of {tract.shape[0]} x {tract.shape[1]} pixels, {TILES} tiles of 4800 x 4800\n")
    print("| rule | s | GB of memory | MB on disk |\n|---|---|---|---|")
    for day in (9800, 9801, 9802):
        seconds, memory, made = _alone(combine, config, _piece(name, day, groups))
        write_json(paths.result(f"{name}.{day}", "mosaic"), made)
        what = "mosaic (compiling)" if day == 9800 else "mosaic"
        print(f"| {what} | {seconds:.1f} | {memory:.1f} | {made['bytes'] / 1e6:.0f} |", flush=True)
        seconds, memory, deep = _alone(add_days, config, name)
        write_json(paths.result(name, "deep"), deep)
        what = f"deep, of {len(deep['inputs'])} days"
        print(f"| {what} | {seconds:.1f} | {memory:.1f} | {deep['bytes'] / 1e6:.0f} |", flush=True)
        seconds, memory, found = _alone(compare, config, name, str(day))
        what = f"difference ({found.get('found', 'skipped')} found)"
        print(f"| {what} | {seconds:.1f} | {memory:.1f} | 0 |", flush=True)
    for what, function, path in (
        ("catalogue", list_sources, paths.mosaic(name, "deep", "catalogue.parquet")),
        ("map (HiPS)", make_map, paths.hips(name)),
    ):
        seconds, memory, found = _alone(function, config, name, 2)
        if what == "catalogue":
            what = f"catalogue, {found['sources']} sources, {found['injected']} injected"
        megabytes = bytes_on_disk(path) / 1e6
        print(f"| {what} | {seconds:.1f} | {memory:.1f} | {megabytes:.0f} |", flush=True)
    tracts = 72
    year = 365.2 * tracts * made["bytes"] / 1e12
    weeks = 52.2 * tracts * made["bytes"] / 1e12
    print(
        f"\nA year of one strip: {year:.1f} TB of days, {weeks:.2f} TB of weeks, "
        f"{tracts * made['bytes'] / 1e9:.0f} GB of all"
    )


# -- through every stage


def _observed(
    work: Path, days: int, groups: int, new_on: int | None = None
) -> tuple[Config, list[dict], dict[int, list[str]]]:
    """Groups of a strip on some days: configuration, sky, groups by day. On day `new_on` there is
    one source more (NEW), of ten times the noise that the first day's mosaic has there."""
    sources, listed = sky_of(work, groups)
    for one in sources:
        one["ra"] %= 360
    table = np.loadtxt(listed, delimiter=",", dtype=str)
    table[1:, 1] = [f"{float(ra) % 360:.9f}" for ra in table[1:, 1]]
    np.savetxt(listed, table, delimiter=",", fmt="%s")
    if new_on is not None:
        sources.append(NEW)
    config = _config(
        work,
        catalogues={"sky": str(listed)},
        imaging={"imsize": 2304, "cell_arcsec": 6.0},
        mosaics={"cell_arcsec": 6.0},
    )
    paths, of_day = Paths.of(config), {}
    solved = chain.calibrate(work, sources, config, faint=0)
    for day in range(days):
        of_day[day] = []
        factor = _ten_sigma(config, of_day[0]) / NEW["flux"] if day == new_on else 0.0
        for k in range(groups):
            # groups know nothing of the sky's turn
            seconds = day * SIDEREAL_S + (k + 2) * GROUP_S + (day * 137.3) % GROUP_S
            start = (Time(CALIBRATOR_START) + TimeDelta(seconds, format="sec")).isot[:19]
            wrong = {"moved_deg": 20.0, "moved_share": 0.05, "faint": 0}
            if new_on is not None:
                wrong["brighter"] = ((NEW["name"], factor if day == new_on else 0.0),)
            seed = 100 + 1000 * day + k
            found = chain.observe(work, sources, config, solved, start, seed=seed, **wrong)
            _finished(paths, start, found.image)
            kept = {SMEARING_FITS, COMPONENTS_FITS, "residual", "pb", "pbcor.fits"}
            for suffix, path in found.image["images"].items():
                if suffix not in kept:
                    remove(Path(path))
            remove(work / f"{start}.ms")
            of_day[day].append(start)
            print(start, found.verdict, file=sys.stderr, flush=True)
    return config, sources, of_day


def _apart(paths: Paths, name: str, days: list[int]) -> dict[int, tuple[float, float]]:
    """By number of days: noise (mJy) of half of what odd days have beyond even days, in which there
    is no sky; and what the weights say."""
    shape, found = _read(paths, name, days[0]).image.shape, {}
    halves = [Sum.empty(shape), Sum.empty(shape)]
    for k, day in enumerate(days):
        halves[k % 2].add(_read(paths, name, day))
        if k == 0:
            continue
        odd, even = halves
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.sqrt(1 / odd.weight + 1 / even.weight) / 2
            ratio = np.nanmedian(noise_of_blocks((odd.image - even.image) / 2 / expected))
        best = np.nanmin(expected)
        found[k + 1] = (1e3 * ratio * best, 1e3 * best)
    return found


def _read(paths: Paths, name: str, day: int) -> Sum:
    made = read_json(paths.result(f"{name}.{day}", "mosaic"))["images"]
    return read_mosaic(Path(made["fits"]), Path(made["weight.fits"]))


def _ten_sigma(config: Config, groups: list[str]) -> float:
    """Ten times a day's noise at the place of NEW, Jy; and so much is its flux."""
    for (name, _), made in _combined(config, {0: groups}).items():
        tract = tract_of(name, config.mosaics)
        if tract.contains(NEW["ra"], NEW["dec"]):
            total = read_mosaic(*(Path(made["images"][end]) for end in ("fits", "weight.fits")))
            at = tuple(int(np.round(v)) for v in tract.pixels_of(NEW["ra"], NEW["dec"]))
            return 10 * float(total.weight[at]) ** -0.5
    raise ValueError("no mosaic has the place")


def _combined(config: Config, of_day: dict[int, list[str]]) -> dict[tuple[str, int], dict]:
    """Mosaics of all tracts and days."""
    paths, found = Paths.of(config), {}
    for groups in of_day.values():
        pieces: dict[tuple[str, int], list[str]] = {}
        for group in groups:
            imaged = read_json(paths.result(group, "image"))
            mjd = (imaged["start_mjd"] + imaged["end_mjd"]) / 2
            for one in crossed(mjd, STRIP, 1.92):
                pieces.setdefault(one, []).append(group)
        for (name, day), mine in pieces.items():
            made = combine(config, _piece(name, day, mine))
            write_json(paths.result(f"{name}.{day}", "mosaic"), made)
            if made["images"]:
                found[name, day] = made
    return found


def _accuracy(config: Config, sources: list[dict], made: dict, least_snr: float = 30.0):
    """Flux over the truth, and offsets, of sources that are alone."""
    total = read_mosaic(*(Path(made["images"][end]) for end in ("fits", "weight.fits")))
    tract = tract_of(made["tract"], config.mosaics)
    beam, cell = Beam(*made["beam_arcsec"]), config.mosaics.cell_arcsec
    near = [s for s in sources if abs((s["ra"] - tract.centre_deg[0] + 180) % 360 - 180) < 6]
    ra, dec, flux = (np.array([s[key] for s in near]) for key in ("ra", "dec", "flux"))
    alpha = np.array([s["alpha"] for s in near])
    flux = flux * (made["freq_hz"] / 1.4e9) ** alpha
    x, y = tract.pixels_of(ra, dec)
    inside = (np.minimum(x, y) > 5) & (x < tract.shape[0] - 6) & (y < tract.shape[1] - 6)
    x, y, flux = x[inside], y[inside], flux[inside]
    i, j = np.round([x, y]).astype(int)
    snr = flux * np.sqrt(total.weight[i, j])
    best = total.weight[i, j] > 0.3 * total.weight.max()
    rows = []
    for k in np.flatnonzero((snr > least_snr) & best):
        away = np.hypot(x - x[k], y - y[k]) * cell
        if ((away < 4 * beam.major_arcsec) & (flux > flux[k] / 50)).sum() > 1:
            continue
        cut = (slice(i[k] - 4, i[k] + 5), slice(j[k] - 4, j[k] + 5))
        peaks = bright_peaks(image=total.image[cut], beam=beam, cell_arcsec=cell, least_jy=0)
        if len(peaks):
            px, py, height = peaks[np.argmax(peaks[:, 2])]
            west, north = (px + i[k] - 4 - x[k]) * cell, (py + j[k] - 4 - y[k]) * cell
            rows.append((height / flux[k], np.hypot(west, north), snr[k], -west, north))
    return np.array(rows).reshape(-1, 5), total


def _offsets(rows: np.ndarray) -> str:
    """Mean offsets, weighted by signal to noise, with their errors."""
    weight = rows[:, 2] ** 2
    means = [np.average(rows[:, k], weights=weight) for k in (3, 4)]
    errors = [
        np.sqrt(np.sum((weight * (rows[:, k] - mean)) ** 2)) / weight.sum()
        for k, mean in zip((3, 4), means, strict=True)
    ]
    return ", ".join(
        f"{mean:+.3f} +- {error:.3f} arcsec to the {name}"
        for mean, error, name in zip(means, errors, ("east", "north"), strict=True)
    )


def _seams(total: Sum, made: dict) -> list[float]:
    """Jumps, in sigma, of the median image at borders of tiles along the middle row."""
    weighed, number = total.image * np.sqrt(total.weight), total.number
    found = []
    middle = weighed.shape[1] // 2
    for border in np.flatnonzero(np.diff(number[:, middle].astype(int))) + 1:
        if 60 < border < len(weighed) - 60:
            sides = [
                np.nanmedian(weighed[cut, middle - 150 : middle + 150])
                for cut in (slice(border - 50, border), slice(border, border + 50))
            ]
            found.append(float(sides[1] - sides[0]))
    return found


def strip(work: Path, groups: int, pictures: Path | None) -> None:
    """Fluxes, places, noise and seams of mosaics of a strip across 0 h on two days."""
    config, sources, of_day = _observed(work, 2, groups)
    made = _combined(config, of_day)
    print("| tract, day | tiles | flux ratio | offset | sources | noise / weights | seams |")
    print("|---|---|---|---|---|---|---|")
    everything, seams = [], []
    for (name, day), one in sorted(made.items()):
        rows, total = _accuracy(config, sources, one)
        mine = _seams(total, one)
        tiles = sum(v["used"] for v in one["inputs"].values())
        if len(rows) and one["coverage"] > 0.5:
            everything.append(rows)
            seams += mine
        ratio = np.median(rows[:, 0]) if len(rows) else np.nan
        off = np.median(rows[:, 1]) if len(rows) else np.nan
        worst = max(map(abs, mine), default=0.0)
        print(
            f"| {name} {day} | {tiles} | {ratio:.4f} | {off:.3f} | {len(rows)} | "
            f"{one['noise_ratio']:.3f} | {worst:.2f} |",
            flush=True,
        )
    rows = np.concatenate(everything)
    weight = 1 / (1 / rows[:, 2] ** 2 + 0.02**2)
    scatter = 1.4826 * np.median(np.abs(rows[:, 0] - np.median(rows[:, 0])))
    print(
        f"\nall: {len(rows)} sources, flux ratio {np.average(rows[:, 0], weights=weight):.4f} "
        f"(median {np.median(rows[:, 0]):.4f}, scatter {scatter:.4f}), offsets "
        f"{np.median(rows[:, 1]):.3f} arcsec in the median; {len(seams)} borders, jumps "
        f"{np.std(seams):.3f} sigma rms, largest {max(map(abs, seams)):.3f}"
    )
    print(f"mean offsets: {_offsets(rows)}")
    if pictures:
        best = max(made, key=lambda one: made[one]["coverage"])
        plot = Paths.of(config).qa(f"{best[0]}.{best[1]}", "mosaic")
        shutil.copy(plot, pictures / "mosaic.png")


def days(work: Path, number: int, pictures: Path | None) -> None:
    """Noise against days; and a source that is there on one day only."""
    config, sources, of_day = _observed(work, number, 3, new_on=number // 2)
    paths = Paths.of(config)
    made = _combined(config, of_day)
    names = {name for name, _ in made}
    best = max(names, key=lambda n: max(one["coverage"] for (m, _), one in made.items() if m == n))
    mine = {day: one for (name, day), one in made.items() if name == best}
    for day in mine:  # as nights come: a day more, again and again
        remove(paths.result(f"{best}.{day}", "mosaic"))
    for day, one in sorted(mine.items()):
        write_json(paths.result(f"{best}.{day}", "mosaic"), one)
        write_json(paths.result(best, "deep"), add_days(config, best))
    history = read_json(paths.result(best, "deep"))["history"]
    apart = _apart(paths, best, sorted(mine))
    print(
        "| days | noise (mJy) | of the weights | ratio | odd days less even days | of the weights "
        "| ratio |\n|---|---|---|---|---|---|---|"
    )
    for one in history:
        noise, expected = one["noise_jy"] * 1e3, one["expected_noise_jy"] * 1e3
        own, theirs = apart.get(one["days"], (np.nan, np.nan))
        print(
            f"| {one['days']} | {noise:.4f} | {expected:.4f} | {noise / expected:.3f} | {own:.4f} "
            f"| {theirs:.4f} | {own / theirs:.3f} |"
        )
    new = NEW
    rows, _ = _accuracy(config, sources, read_json(paths.result(best, "deep")))
    print(
        f"\nall days: {len(rows)} sources, flux ratio {np.median(rows[:, 0]):.4f}; {_offsets(rows)}"
    )
    print(f"\nthe new one is there on day {sorted(mine)[number // 2]}")
    for day in sorted(mine):
        found = compare(config, best, str(day))
        text = [
            f"{c['snr']:.1f} sigma {'new' if c['new'] else 'change'} {c['flux_jy'] * 1e3:+.2f} mJy "
            f"at {np.hypot((c['ra_deg'] - new['ra']) * 0.96, c['dec_deg'] - new['dec']) * 3600:.1f}"
            " arcsec"
            for c in found["changes"]
        ]
        print(f"day {day}: {'; '.join(text) or 'nothing'}", flush=True)
    if pictures:
        shutil.copy(paths.qa(best, "noise"), pictures / "mosaic_noise.png")
        day = sorted(mine)[number // 2]
        shutil.copy(paths.qa(f"{best}.{day}", "difference"), pictures / "mosaic_difference.png")


def main() -> None:
    """What is asked for."""
    what, *more = sys.argv[1:] or ["size"]
    pictures = Path(more[1]) if len(more) > 1 else None
    with tempfile.TemporaryDirectory() as work:
        if what == "size":
            size(Path(work))
        elif what == "strip":
            strip(Path(work), int(more[0]) if more else 30, pictures)
        else:
            days(Path(work), int(more[0]) if more else 10, pictures)


if __name__ == "__main__":
    main()
