"""One full-size group (96 antennas, 24 x 768 x 2; 2.3 GB): conversion against the reference,
staging, workers, tiles, and what every flagging strategy catches, loses and costs. Prints Markdown
tables; needs 25 GB of disk, keeps nothing.

    python bench/full_size.py [conversion] [tiles] [flagging]
"""

import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from contimg.config import Config, FlaggingConfig
from contimg.paths import TMPFS, staged
from contimg.simulate import Simulation, antenna_gains, read_sky, simulate_group
from contimg.stages.convert import convert_group
from contimg.store.files import remove
from contimg.visibilities import measurement_set as mset
from contimg.visibilities.conversion import concat_subbands, plan_group
from contimg.visibilities.uvh5 import parse_name

CONFIG = Config()
START, GAIN_SEED, DEAD, REPEATS = "2026-03-02T20:18:37", 7, 36, 3
FORK = multiprocessing.get_context("fork")


def simulate(folder: Path, **options) -> dict[int, Path]:
    """A full-size group's files by subband; same noise each time."""
    sim = Simulation(
        start=START, antennas=96, channels=48, gain_seed=GAIN_SEED, dead=(DEAD,), **options
    )
    catalogues = CONFIG.catalogues
    paths = simulate_group(
        folder, sim, read_sky(catalogues.sky, catalogues.calibrators), catalogues.stations
    )
    return {parse_name(path.name)[1]: path for path in paths}


def measured(function, *args, context=FORK) -> tuple[float, float]:
    """Seconds, and the most memory (GB, shared pages not counted) of a call in a process of its
    own."""
    process = context.Process(target=function, args=args)
    begin = time.perf_counter()
    process.start()
    peak, watched = 0, psutil.Process(process.pid)

    def watch():
        nonlocal peak
        while process.is_alive():
            with suppress(psutil.Error):  # ended meanwhile
                peak = max(
                    peak,
                    sum(
                        p.memory_full_info().uss
                        for p in [watched, *watched.children(recursive=True)]
                    ),
                )
            time.sleep(0.5)  # counting pages holds the process up

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.join()
    seconds = time.perf_counter() - begin
    watcher.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")
    return seconds, peak / 1e9


def convert_and_concat(files, staging: Path, ms: Path, workers: int) -> None:
    """Staging to final Measurement Set, as the stages do it."""
    subbands = staged(staging, START, CONFIG)
    convert_group(files, subbands, CONFIG, workers)
    concat_subbands(subbands, ms)
    shutil.rmtree(staging)


def plain_copy(files, target: Path) -> None:
    """Read the files, write as many bytes as the final Measurement Set has."""
    buffer = bytearray(1 << 20)
    for path in files.values():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with target.open("wb", buffering=0) as file:
        for _ in range(2082):
            file.write(buffer)


def _pyuvdata_one(job) -> None:
    from contimg.visibilities.pyuvdata_writer import read_phased

    header, centre, output = job
    read_phased(header, centre).write_ms(str(output), clobber=True, fix_autos=True)


def pyuvdata_and_concat(files, staging: Path, ms: Path) -> None:
    """The straightforward recipe: pyuvdata in two processes with its checks, then CASA's concat (16
    spectral windows)."""
    from contimg.visibilities import casa

    plan = plan_group(files, 16, "OVRO_MMA")
    staging.mkdir()
    outputs = [staging / f"{sb}.ms" for sb in files]
    jobs = [
        (plan.headers[sb], plan.observation.phase_centre_deg, out)
        for sb, out in zip(files, outputs, strict=True)
    ]
    with FORK.Pool(2) as pool:
        pool.map(_pyuvdata_one, jobs, chunksize=1)
    begin = time.perf_counter()
    casa.tasks(staging / "casa.log").concat(vis=[str(out) for out in outputs], concatvis=str(ms))
    print(f"    (of which concat {time.perf_counter() - begin:.1f} s)", file=sys.stderr)
    shutil.rmtree(staging)


def bench_conversion(work: Path, files) -> None:
    """Ours, others', and the floor: in turns, so that all see the same machine."""
    fast, disk = Path(tempfile.mkdtemp(dir=TMPFS, prefix="contimg-bench-")), work / "staging"
    ms = work / "whole.ms"
    cases = {
        "plain read of the files and write of as many bytes": (plain_copy, files, work / "copy"),
        "2 workers, staging in tmpfs": (convert_and_concat, files, fast / "s", ms, 2),
        "1 worker, tmpfs": (convert_and_concat, files, fast / "s", ms, 1),
        "4 workers, tmpfs": (convert_and_concat, files, fast / "s", ms, 4),
        "16 workers, tmpfs": (convert_and_concat, files, fast / "s", ms, 16),
        "2 workers, staging on disk": (convert_and_concat, files, disk, ms, 2),
        "pyuvdata in 2 processes, tmpfs, CASA concat": (
            pyuvdata_and_concat,
            files,
            fast / "p",
            work / "reference.ms",
        ),
    }
    times, peaks = {name: [] for name in cases}, dict.fromkeys(cases, 0.0)
    for turn in range(REPEATS):
        for name, (function, *args) in cases.items():
            if turn and function is pyuvdata_and_concat:
                continue
            for path in files.values():  # into the page cache
                path.read_bytes()
            seconds, peak = measured(function, *args)
            times[name].append(seconds)
            peaks[name] = max(peaks[name], peak)
            for path in (work / "copy", ms, work / "reference.ms"):
                remove(path)
    shutil.rmtree(fast)
    ours = statistics.median(times["2 workers, staging in tmpfs"])
    print(
        "\n| conversion, files to final Measurement Set | median s | s, each | times ours | GB of "
        "memory |\n|---|---|---|---|---|"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        each = " ".join(f"{s:.1f}" for s in seconds)
        print(
            f"| {name} | {median:.1f} | {each} | {median / ours:.2f} | {peaks[name]:.2f} |",
            flush=True,
        )


def bench_tiles(work: Path, ms: Path) -> None:
    """How long later stages' ways of reading take with tiles of several shapes."""
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    data = mset.read_grid(ms, "DATA", rows.shape[0]).reshape(-1, 768, 2)
    nbaseline, copy = rows.shape[1], work / "tiles.ms"
    print(
        "\n| tile: channels x rows | write | all, by time | 200 rows | one baseline | 8 channels "
        "|\n|---|---|---|---|---|---|"
    )
    original = mset.tile_rows
    for channels, tall in (
        (768, 21),
        (768, 85),
        (192, 291),
        (48, original(nbaseline, 48)),
        (48, nbaseline),
    ):
        mset.tile_rows = lambda *_, tall=tall: tall
        remove(copy)
        clock = [time.perf_counter()]
        with mset.creating(copy, observation, rows, channels) as table:
            table.putcol("DATA", data)
        clock.append(time.perf_counter())
        with mset.open_table(copy) as table:
            buffer = np.empty((nbaseline, 768, 2), np.complex64)
            for first in range(0, len(data), nbaseline):
                table.getcolnp("DATA", buffer, first, nbaseline)
            clock.append(time.perf_counter())
            for row in range(0, len(data), len(data) // 200):
                table.getcell("DATA", row)
            clock.append(time.perf_counter())
            table.query("ANTENNA1 == 5 && ANTENNA2 == 50").getcol("DATA")
            clock.append(time.perf_counter())
            table.getcolslice("DATA", [100, 0], [107, 1])
            clock.append(time.perf_counter())
        print(
            f"| {channels} x {tall} | " + " | ".join(f"{s:.2f}" for s in np.diff(clock)) + " |",
            flush=True,
        )
    mset.tile_rows = original
    remove(copy)


def whole_ms(work: Path, name: str, **options) -> tuple[Path, dict]:
    """A simulated group's Measurement Set and its truth; the files are removed."""
    files = simulate(work / name, **options)
    convert_and_concat(files, work / "staging", work / f"{name}.ms", 2)
    truth = json.loads((work / name / f"truth.{START}.json").read_text())
    shutil.rmtree(work / name)
    return work / f"{name}.ms", truth


def _prepare(ms: Path, strategy: str, result: Path) -> None:
    from contimg.stages.prepare import prepare

    outcome = prepare(
        ms, FlaggingConfig(strategy=strategy), CONFIG.catalogues.stations, Path(os.devnull)
    )
    result.write_text(json.dumps(outcome))


def bench_flagging(work: Path) -> None:
    """Each strategy on the same data with interference; judged on the same noise without, and on
    the sky alone."""
    print("making three groups: sky alone, with noise, with interference ...", file=sys.stderr)
    sky_ms, _ = whole_ms(work, "sky", noise_jy=0.0)
    clean_ms, _ = whole_ms(work, "clean")
    ms, truth = whole_ms(work, "interference", rfi=True)
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    ntime, nbaseline = rows.shape
    nchan = len(observation.freq_hz)
    cross = rows.ant_1 != rows.ant_2
    bad_antenna = (rows.ant_1 == DEAD - 1) | (rows.ant_2 == DEAD - 1)
    rfi = truth["rfi"]
    kinds = {name: np.zeros((ntime, nchan), bool) for name in ("narrow", "burst", "weak")}
    kinds["narrow"][:, [nchan - 1 - c for c in rfi["narrow_channels"]]] = True
    kinds["burst"][rfi["burst_integration"]] = True
    kinds["weak"][rfi["weak_integrations"], nchan - 1 - rfi["weak_channel"]] = True
    kinds["weak"] &= ~(kinds["narrow"] | kinds["burst"])
    good = ~(kinds["narrow"] | kinds["burst"] | kinds["weak"])
    model, clean = (mset.read_grid(path, "DATA", ntime) for path in (sky_ms, clean_ms))
    autos = ~cross
    ideal = np.repeat(~good[:, None, :, None], nbaseline, 1).repeat(2, 3)
    ideal[:, bad_antenna | autos] = True
    gains = antenna_gains(
        Simulation(start=START, gain_seed=GAIN_SEED),
        len(observation.antenna_names),
        observation.freq_hz,
    )
    solution = gains[rows.ant_1] * np.conj(gains[rows.ant_2]) * Simulation(start=START).scale
    baseline_flux, ideal_rms = _flux(clean, model, ideal), None
    print(
        "\n| strategy | s | narrow-band | burst | weak | dead antenna | good data lost | flux bias "
        "| image rms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    dirty = mset.read_grid(ms, "DATA", ntime)
    for strategy in ("only what is bad", "none", "mad", "aoflagger", "tfcrop"):
        if strategy == "only what is bad":
            flags, seconds = ideal, 0.0
        else:
            measured(_prepare, ms, "none", work / "warm.json")  # compiled, in the page cache
            seconds, _ = measured(_prepare, ms, strategy, work / f"{strategy}.json")
            flags = mset.read_grid(ms, "FLAG", ntime)
        there = flags[:, cross & ~bad_antenna]
        caught = [there.transpose(0, 2, 1, 3)[kind].mean() for kind in kinds.values()]
        lost = there.transpose(0, 2, 1, 3)[good].mean()
        bias = _flux(clean, model, flags | ideal) / baseline_flux - 1
        rms = _image_rms(dirty, model, solution, flags, observation, rows)
        ideal_rms = ideal_rms or rms
        dead = flags[:, cross & bad_antenna].mean()
        print(
            f"| {strategy} | {seconds:.1f} | "
            + " | ".join(f"{100 * c:.2f} %" for c in [*caught, dead])
            + f" | {100 * lost:.3f} % | {100 * bias:+.3f} % | {rms / ideal_rms:.3f} |",
            flush=True,
        )


def _flux(data: np.ndarray, model: np.ndarray, flags: np.ndarray) -> float:
    """Least-squares amplitude of the model in unflagged data."""
    use = ~flags
    top = sum(np.vdot(m[u], d[u]).real for m, d, u in zip(model, data, use, strict=True))
    return top / sum(np.vdot(m[u], m[u]).real for m, u in zip(model, use, strict=True))


def _image_rms(data, model, solution, flags, observation, rows) -> float:
    """rms of a naturally weighted image of what is not sky, relative units."""
    import ducc0

    value = np.zeros((*rows.shape, len(observation.freq_hz)), np.complex64)
    weight = np.zeros(value.shape, np.float32)
    for t in range(len(value)):
        power = np.abs(solution) ** 2
        mine = np.where(flags[t], 0, power)
        value[t] = (mine * (data[t] - model[t]) / solution).sum(-1)
        weight[t] = mine.sum(-1)
    image = ducc0.wgridder.vis2dirty(
        uvw=rows.uvw_m.reshape(-1, 3),
        freq=observation.freq_hz,
        vis=value.reshape(-1, value.shape[-1]),
        npix_x=1024,
        npix_y=1024,
        pixsize_x=2.4e-5,
        pixsize_y=2.4e-5,
        epsilon=1e-4,
        do_wgridding=False,
        nthreads=2,
    )
    return float(image.std() / weight.sum())


if __name__ == "__main__":
    wanted = set(sys.argv[1:]) or {"conversion", "tiles", "flagging"}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if wanted & {"conversion", "tiles"}:
            raw = simulate(place / "raw")
            if "conversion" in wanted:
                bench_conversion(place, raw)
            if "tiles" in wanted:
                convert_and_concat(raw, place / "staging", place / "tiled.ms", 2)
                bench_tiles(place, place / "tiled.ms")
            shutil.rmtree(place / "raw")
        if "flagging" in wanted:
            bench_flagging(place)
