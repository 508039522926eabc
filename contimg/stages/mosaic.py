"""The images of a tract on a sidereal day as one: what the rule `mosaic` makes, which is no stage
of a group."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from astropy.time import Time

from contimg.config import Config
from contimg.errors import ValidationError
from contimg.findings import LEVELS
from contimg.imaging.interface import Beam, robust_rms
from contimg.mosaics.combine import Sum, Tile, add_tile, noise_of_blocks
from contimg.mosaics.files import read_tile, why_no_tile, write_mosaic
from contimg.mosaics.tracts import Tract, tract_of
from contimg.paths import Paths
from contimg.plots.mosaic import plot_mosaic
from contimg.plots.style import save_plot
from contimg.products.mosaics import Piece, options_digest, tract_and_day
from contimg.products.record import results_of
from contimg.stages.job import Job
from contimg.store.files import checksum, found_json, lock, remove, write_json
from contimg.store.identity import made_by

log = logging.getLogger(__name__)


def run(job: Job) -> dict:
    """The work of the rule `mosaic`; returns its result."""
    name, day = tract_and_day(job.group)
    if not job.piece["groups"]:
        raise ValidationError(
            f"{job.group}: this run has no images for it. Ask for tract/{name}, or "
            f"epoch/{name.partition('_')[0]}/{day}"
        )
    return combine(job.config, Piece.from_json(job.group, job.piece))


def combine(config: Config, piece: Piece) -> dict:
    """Combine a day's images of a tract; returns its result. Without any that may be used there is
    no mosaic, and the result says why."""
    name, day = piece.tract, piece.sday
    paths, tract = Paths.of(config), tract_of(name, config.mosaics)
    inputs = {group: _input(config, group, piece) for group in piece.groups}
    seen = dict(piece.seen) | {
        group: None if inputs[group].get("against") else inputs[group]["checksum"]
        for group in piece.to_come
    }
    usable = {group: one for group, one in inputs.items() if not one["reason"]}
    beam = _common_beam(config, tract.strip, [one["imaged"] for one in usable.values()])
    for one in usable.values():
        one["reason"] = _off(one["imaged"], beam, config.mosaics.most_beam_off)
    used = {group: one for group, one in usable.items() if not one["reason"]}
    total = Sum.empty(tract.shape)
    for group, tile in _tiles(used, config):
        one = used[group]
        one["pixels"] = add_tile(total, tract, tile, beam)
        log.info("%s %d: %s on %d pixels", name, day, group, one["pixels"])
        if not one["pixels"]:
            one["reason"] = "it does not reach the tract"
    used = {group: one for group, one in used.items() if one["pixels"]}
    files = paths.mosaic_files(name, day)
    about = of_tract(tract, config) | {
        "sday": day,
        "inputs": {group: _as_json(one) for group, one in inputs.items()},
        "seen": seen,
    }
    if not used:
        for path in files.values():
            remove(path)
        return about
    about |= _of_images(used, beam) | numbers(total)
    write_mosaic(
        image=files["fits"],
        weight=files["weight.fits"],
        total=total,
        tract=tract,
        beam=beam,
        keywords=keywords(about, config, f"{name} day {day}") | {"TRACT": name, "SDAY": day},
    )
    title = f"{name} day {day}: {len(used)} images"
    save_plot(
        lambda: plot_mosaic(title, total.image, total.weight, about),
        paths.qa(f"{name}.{day}", "mosaic"),
    )
    return about | files_of(files)


def of_tract(tract: Tract, config: Config) -> dict:
    """What the result of a day, or of all, begins with: where it is, and no image yet."""
    return {
        "tract": tract.name,
        "strip": tract.strip,
        "centre_deg": list(tract.centre_deg),
        "shape": list(tract.shape),
        "cell_arcsec": 3600 * tract.cell_deg,
        "region": tract.region,
        "options": options_digest(config),
        "images": {},
        "inputs": {},
        "verdict": "none",
        "coverage": 0.0,
    }


def checksum_of(made: Mapping) -> str:
    """Of a mosaic's image, from its result."""
    return made["checksums"][made["images"]["fits"]]


def files_of(files: Mapping[str, Path]) -> dict:
    """Names, checksums and sizes for a result."""
    return {
        "images": {end: str(path) for end, path in files.items()},
        "checksums": {str(path): checksum(path) for path in files.values()},
        "bytes": sum(path.stat().st_size for path in files.values()),
    }


def _input(config: Config, group: str, piece: Piece) -> dict[str, Any]:
    """A group's image: its result, its checksum, and why it is left out (empty: it is not).
    Whether it may be published the plan knows, of an image that this run made its result."""
    results = results_of(Paths.of(config), group)
    imaged, indexed = results.get("image"), results.get("index")
    one = {"imaged": imaged, "checksum": None, "reason": piece.refused.get(group, "")}
    if one["reason"]:
        return one
    if not imaged or not indexed:
        return one | {"reason": "its results are not there"}
    images = imaged["images"]
    one["checksum"] = indexed["checksums"].get(images.get("pbcor.fits") or images["image.pbcor"])
    if imaged["mode"] != "full":
        return one | {"reason": "its last image is a quick look"}
    if group in piece.to_come:
        against = "; ".join(imaged["unpublishable"])
        return one | {"against": against, "reason": against or why_no_tile(images)}
    if one["checksum"] != piece.seen.get(group):
        return one | {"reason": "its image is not the one that the index has"}
    return one | {"reason": why_no_tile(images)}


def _as_json(one: Mapping) -> dict:
    imaged = one["imaged"] or {}
    return {
        "used": not one["reason"],
        "reason": one["reason"] or None,
        "verdict": imaged.get("verdict"),
        "noise_jy": imaged.get("rms_jy"),
        "checksum": one["checksum"],
        "pixels": one.get("pixels", 0),
    }


def _common_beam(config: Config, strip: str, images: Sequence[Mapping]) -> Beam | None:
    """The strip's restoring beam; of the first tiles of all, where configuration has none."""
    if config.mosaics.beam_arcsec:
        return Beam(*config.mosaics.beam_arcsec)
    path = Paths.of(config).mosaic_beam(strip)
    locks = Paths.of(config).state / "locks"
    with lock(locks / "mosaic_beam.lock", wait=True, what="beam of mosaics"):
        if known := found_json(path):
            return Beam(*known["beam_arcsec"])
        if not images:
            return None
        # what all antennas would give, where the image says that
        sizes = [
            one.get("expected_beam_arcsec") or [one["beam_major_arcsec"], one["beam_minor_arcsec"]]
            for one in images
        ]
        twice = np.radians([2 * one["beam_pa_deg"] for one in images])  # 90 and -90 are one
        middle = np.degrees(np.arctan2(np.median(np.sin(twice)), np.median(np.cos(twice)))) / 2
        beam = [round(float(size), 1) for size in np.median(sizes, axis=0)]
        beam.append(round(float(middle)))
        write_json(path, {"beam_arcsec": beam})
        return Beam(*beam)


def _off(imaged: Mapping, beam: Beam, most: float) -> str:
    """Why an image's own beam is too far from the strip's; empty where it is not."""
    own = imaged["beam_major_arcsec"], imaged["beam_minor_arcsec"]
    pairs = zip(own, (beam.major_arcsec, beam.minor_arcsec), strict=True)
    if all(abs(mine / common - 1) <= most for mine, common in pairs):
        return ""
    sizes = [
        f"{major:.1f} x {minor:.1f} arcsec"
        for major, minor in (own, (beam.major_arcsec, beam.minor_arcsec))
    ]
    return f"its beam is {sizes[0]}, the strip's {sizes[1]}"


def _tiles(used: Mapping[str, Mapping], config: Config) -> Iterator[tuple[str, Tile]]:
    """Groups and their tiles; the next one is read while one is at work."""

    def read(group: str) -> Tile:
        imaged = used[group]["imaged"]
        return read_tile(imaged["images"], imaged["rms_jy"], config.imaging.beam_limit)

    names = list(used)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, names[0]) if names else None
        for number, group in enumerate(names, start=1):
            tile = ahead.result()
            ahead = pool.submit(read, names[number]) if number < len(names) else None
            yield group, tile


def _of_images(used: Mapping[str, Mapping], beam: Beam) -> dict:
    """What the images say of the mosaic."""
    images = [one["imaged"] for one in used.values()]
    weights = np.array([one["rms_jy"] ** -2.0 for one in images])
    return {
        "verdict": max((one["verdict"] for one in images), key=LEVELS.index),
        "begin_mjd": min(one["start_mjd"] for one in images),
        "end_mjd": max(one["end_mjd"] for one in images),
        "freq_hz": float(np.average([one["freq_hz"] for one in images], weights=weights)),
        "bandwidth_hz": float(max(one["bandwidth_hz"] for one in images)),
        "beam_arcsec": [beam.major_arcsec, beam.minor_arcsec, beam.pa_deg],
    }


def numbers(total: Sum) -> dict:
    """Coverage; noise, measured and as the weights have it, where the weight is half of the
    highest or more; their ratio over all."""
    there = total.weight > 0
    best = total.weight > 0.5 * total.weight.max()
    ratio = robust_rms((total.image * np.sqrt(total.weight))[there])
    blocks = noise_of_blocks(np.where(best, total.image, np.nan))
    return {
        "coverage": round(float(there.mean()), 4),
        "noise_jy": float(np.nanmedian(blocks)) if np.isfinite(blocks).any() else None,
        "expected_noise_jy": float(np.median(total.weight[best] ** -0.5)),
        "noise_ratio": ratio,
    }


def keywords(about: Mapping, config: Config, what: str) -> dict:
    """Header keywords of a mosaic, from its result: the inputs that are in it, with verdicts."""
    used = [name for name, one in about["inputs"].items() if one["used"]]
    origin = made_by(config)
    words = {
        "OBJECT": what,
        "DATE-OBS": Time(about["begin_mjd"], format="mjd").isot,
        "DATE-END": Time(about["end_mjd"], format="mjd").isot,
        "MJD-OBS": about["begin_mjd"],
        "MJD-END": about["end_mjd"],
        "TIMESYS": "UTC",
        "RESTFRQ": about["freq_hz"],
        "BANDWID": about["bandwidth_hz"],
        "RMS": about["noise_jy"] or 0.0,
        "VERDICT": about["verdict"],
        "CONFIG": origin["config"],
        "SOFTWARE": f"contimg {origin['version']}",
        "COMMIT": origin["commit"],
        "NINPUTS": len(used),
    }
    for number, name in enumerate(used):
        words[f"IN{number:06d}"] = f"{name} {about['inputs'][name]['verdict']}"
    return words
