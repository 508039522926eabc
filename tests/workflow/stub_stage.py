"""Takes the place of every science script in the replay: no data, but results, outputs and ends
like a real stage.

What began and ended is in `journal` beside the site's state folder. A group named in `fails_always`
or `fails_once` fails in its image stage, one in `fails_in_convert` there, with subbands in its
folder; one in `slow` takes its time in every stage.
"""

import fcntl
import json
import os
import select
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

config, group = snakemake.config["paths"], snakemake.wildcards.group
products, site = Path(config["products"]), Path(config["state"]).parent
result = Path(snakemake.output.result)
stage = result.name.split(".")[-2]


def end_with_snakemake():
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(int(os.environ["CONTIMG_RUN_PID"]))], [], [])
    os._exit(9)


def note(what):
    with (site / "journal").open("a") as file:
        file.write(f"{what} {group} {stage}\n")


def named(name):
    path = site / name
    return path.exists() and group in path.read_text().split()


threading.Thread(target=end_with_snakemake, daemon=True).start()
lock = Path(config["state"]) / "locks" / f"{group}.lock"
lock.parent.mkdir(parents=True, exist_ok=True)
with lock.open("a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    note("begin")
    error = products / "logs" / "errors" / f"{group}.json"
    error.unlink(missing_ok=True)
    failed_before = site / f"failed.{group}"
    in_image = stage == "image" and (
        named("fails_always") or (named("fails_once") and not failed_before.exists())
    )
    in_convert = stage == "convert" and named("fails_in_convert")
    if in_image or in_convert:
        failed_before.touch()
        error.parent.mkdir(parents=True, exist_ok=True)
        words = {
            "stage": stage,
            "error": "ImagingError: the stub was told to fail",
            "permanent": in_convert,
            "run": os.environ["CONTIMG_RUN_ID"],
        }
        error.write_text(json.dumps(words))
        # as many as a real one has, for whoever removes them
        for number in range(300 if in_convert else 0):
            path = Path(snakemake.output.subbands) / f"sb{number % 16:02d}.ms" / f"table.f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        raise SystemExit(1)
    time.sleep(6 if named("slow") else 0.02)
    for path in map(Path, snakemake.output):
        if path.suffix in (".fits", ".png", ".parquet"):
            path.write_text("stub")
        elif path.suffix == ".json" and path != result:  # a second result
            path.write_text(json.dumps({"stage": "refine", "group": group, "seconds": 0.01}))
        elif path != result:
            path.mkdir(parents=True, exist_ok=True)
    begin = datetime.fromisoformat(group).replace(tzinfo=UTC).timestamp()
    values = {"stage": stage, "group": group, "seconds": 0.02}
    if stage == "convert":
        values |= {"load_s": 0.01, "phase_s": 0.0, "write_s": 0.01, "writer": "stub"}
    if stage == "image":
        values |= {
            "images": {"pbcor.fits": str(products / "images" / f"{group}.pbcor.fits")},
            "rms_jy": 5e-4,
            "verdict": "good",
            "verdict_reasons": [],
            "beam_major_arcsec": 20.0,
            "beam_minor_arcsec": 15.0,
            "beam_pa_deg": 0.0,
            "catalogue": {"found": 0, "expected": 0, "flux_ratio": None, "offset_arcsec": None},
        }
    if stage == "caltables":
        name = (
            snakemake.input[0].split("/")[-1].removesuffix(".register.json")
            if snakemake.input
            else ""
        )
        values |= {"set_name": name, "science": True}
    if stage == "solve":
        tables = products / "caltables" / f"{group}.bpcal"
        tables.mkdir(parents=True, exist_ok=True)
        values |= {
            "set_name": group,
            "science": True,
            "calibrator": "stub",
            "refant": "1",
            "mid_mjd": begin / 86400 + 40587 + 0.0018,
            "app_dec_deg": 16.15,
            "flux_scale": "stub",
            "quality": {"G": {"median_snr": 9.0}},
            "tables": {"B": str(tables)},
            "problems": [],
            "versions": {},
        }
    partial = result.with_name(f".{result.name}")
    partial.write_text(json.dumps(values))
    partial.rename(result)
    note("end")
