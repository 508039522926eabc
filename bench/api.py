"""The API and the page with 10,000 groups in the databases, while a run writes: median and longest
of 60 requests each.

Real server on loopback, real databases; the rows are made up, the files behind them are not there.
Prints Markdown.
"""

import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import yaml

from contimg.calibration import registry
from contimg.clock import now
from contimg.config import load
from contimg.paths import GROUP_PLOTS, Paths
from contimg.products import tables as product_tables
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.store import db
from contimg.store.files import write_json

GROUPS, REQUESTS, SPACING_S = 10_000, 60, 309
START = datetime(2026, 1, 1, tzinfo=UTC)
ROUTES = (
    "/",
    "/api/status",
    "/api/groups",
    "/api/groups?state=failed",
    "/api/images",
    "/api/images?type=pbcor&sort=noise_jy&limit=500",
    "/api/images?ra=200&dec=16&radius=2",
    "/api/images?start=2026-01-20T00:00:00&end=2026-01-21T00:00:00",
    "/api/ms_index",
    "/api/qa",
    "/api/qa?name=bandpass&offset=9000",
    "/api/caltables",
    "/calibration",
    "/sky",
    "/metrics",
)


def group_id(number: int) -> str:
    """Name of the n-th group."""
    return f"{START + timedelta(seconds=SPACING_S * number):%Y-%m-%dT%H:%M:%S}"


def rows_of(number: int, paths: Paths) -> tuple[product_tables.MeasurementSet, list, list]:
    """What `index` would write of a group."""
    group, mid, at = group_id(number), db.mjd(group_id(number)), now()
    ms = product_tables.MeasurementSet(
        path=str(paths.ms(group)),
        group_id=group,
        start_mjd=mid - 0.0018,
        end_mjd=mid + 0.0018,
        mid_mjd=mid,
        processed_at=at,
        status="ok",
        stage="index",
        stage_updated_at=now(),
        bytes=4_300_000_000,
    )
    common = {
        "group_id": group,
        "ms_path": ms.path,
        "created_at": now(),
        "beam_major_arcsec": 30.0,
        "beam_minor_arcsec": 14.0,
        "beam_pa_deg": 90.0,
        "noise_jy": 3e-4 + number % 97 * 1e-6,
        "thermal_jy": 3e-4,
        "dynamic_range": 1e3,
        "science": True,
        "verdict": "warn" if number % 50 == 0 else "good",
        "verdict_reasons": "",
        "flux_ratio": 1 + (number % 31 - 15) * 1e-3,
        "expected_sources": 40,
        "found_sources": 40,
        "centre_ra_deg": number * SPACING_S / 240 % 360,
        "centre_dec_deg": 16.1,
        "diameter_deg": 4.0,
        "start_mjd": ms.start_mjd,
        "end_mjd": ms.end_mjd,
        "flagged": 0.05,
        "mode": "full",
    }
    kinds = {"image": "image.fits", "pbcor": "pbcor.fits", "pb": "pb.fits", "residual": "residual"}
    images = [
        product_tables.Image(
            type=kind,
            path=str(paths.image(group, suffix)),
            pbcor=kind == "pbcor",
            checksum="0" * 64,
            **common,
        )
        for kind, suffix in kinds.items()
    ]
    plots = [
        product_tables.QaArtifact(
            group_id=group, name=name, path=str(paths.qa(group, name)), created_at=now()
        )
        for name in GROUP_PLOTS
    ]
    return ms, images, plots


def fill(paths: Paths) -> None:
    """Ten thousand groups: done, but for the last few and some that failed."""
    with db.writing(paths.ingest_db, queue_tables.Base) as session:
        names = [group_id(n) for n in range(GROUPS)]
        columns = {
            "state": "collecting",
            "last_update": now(),
            "expected_subbands": 16,
            "chunk_minutes": 5.0,
            "retry_count": 0,
        }
        session.bulk_insert_mappings(
            queue_tables.Group, [{"group_id": n, "received_at": now(), **columns} for n in names]
        )
        queue = queue_tables.Group.__table__
        for state in ("pending", "in_progress", "processing_fresh", "completed"):
            session.execute(
                queue.update()
                .values(state=state, last_update=now())
                .where(queue.c.group_id < names[-5])
            )
        session.execute(
            queue.update().values(state="pending").where(queue.c.group_id.in_(names[100::1000]))
        )
        session.execute(
            queue.update()
            .values(state="failed", error="made up")
            .where(queue.c.group_id.in_(names[100::1000]))
        )
    others = []
    with db.writing(paths.products_db, product_tables.Base) as session:
        for number in range(GROUPS):
            ms, images, plots = rows_of(number, paths)
            session.add(ms)
            others += [*images, *plots]
        session.flush()  # images refer to Measurement Sets
        session.add_all(others)
    with db.writing(paths.registry_db, registry.Base) as session:
        for number in range(0, GROUPS, 279):
            mid = db.mjd(group_id(number))
            session.add_all(
                registry.CalTable(
                    set_name=group_id(number),
                    path=f"{group_id(number)}.{kind}",
                    table_type=kind,
                    order_index=k,
                    cal_field="3C286",
                    refant="24",
                    created_at=now(),
                    valid_start_mjd=mid - 1,
                    valid_end_mjd=mid + 1,
                    mid_mjd=mid,
                    app_dec_deg=16.1,
                    flux_scale="Perley-Butler 2017",
                    quality=200.0,
                    numbers="{}",
                    checksum="0",
                    software="{}",
                    science=True,
                    status="active",
                    notes="",
                )
                for k, kind in enumerate("BG")
            )
    check = {"found": 40, "expected": 40, "flux_ratio": 1.0, "offset_arcsec": 0.1}
    for number in range(GROUPS - 20, GROUPS):  # what a status reads of the latest groups
        for stage in ("convert", "concat", "prepare", "apply", "qa"):
            write_json(paths.result(group_id(number), stage), {"seconds": 5.0})
        image = {
            "seconds": 60.0,
            "rms_jy": 3e-4,
            "beam_major_arcsec": 30,
            "beam_minor_arcsec": 14,
            "beam_pa_deg": 90,
            "verdict": "good",
            "verdict_reasons": [],
            "images": {"pbcor.fits": "x"},
            "catalogue": check,
        }
        write_json(paths.result(group_id(number), "image"), image)


def write_without_end(paths: Paths) -> None:
    """What a run writes, much faster than any run: a stage, a group's rows."""
    while True:
        for number in range(GROUPS - 200, GROUPS - 10):
            with db.writing(paths.products_db, product_tables.Base) as session:
                product_tables.record_group(session, *rows_of(number, paths))
            with db.writing(paths.ingest_db, queue_tables.Base) as session:
                moves.beat(session, "nobody")
            time.sleep(0.02)


def main() -> None:
    """Fill, serve, write, ask."""
    with tempfile.TemporaryDirectory() as work:
        site = Path(work, "site.yaml")
        where = {name: str(Path(work, name)) for name in ("incoming", "products", "state")}
        site.write_text(yaml.safe_dump({"paths": where}))
        Path(where["products"]).mkdir()
        paths = Paths.of(load([site]))
        begin = time.perf_counter()
        fill(paths)
        print(
            f"{GROUPS} groups, {4 * GROUPS} images, made in {time.perf_counter() - begin:.0f} s\n",
            flush=True,
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            str(Path(sys.executable).with_name("contimg")),
            "serve",
            "--port",
            str(port),
            "--configfile",
            str(site),
        ]
        server = subprocess.Popen(command, env=os.environ)
        writer = multiprocessing.get_context("spawn").Process(
            target=write_without_end, args=(paths,), daemon=True
        )
        writer.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                while True:
                    try:
                        client.get("/healthz").raise_for_status()
                        break
                    except httpx.TransportError:
                        time.sleep(0.2)
                print("| route | median ms | longest ms | kB | rows |\n|---|---|---|---|---|")
                for route in ROUTES:
                    seconds = []
                    for _ in range(REQUESTS):
                        begin = time.perf_counter()
                        answer = client.get(route).raise_for_status()
                        seconds.append(time.perf_counter() - begin)
                    total = (
                        json.loads(answer.text).get("total", "") if route.startswith("/api") else ""
                    )
                    numbers = (
                        f"{1e3 * statistics.median(seconds):.0f} | {1e3 * max(seconds):.0f} "
                        f"| {len(answer.content) / 1e3:.0f}"
                    )
                    print(f"| `{route}` | {numbers} | {total} |", flush=True)
        finally:
            writer.terminate()
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
