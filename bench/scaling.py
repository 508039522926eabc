"""What a dry-run, a plan and the start of a run cost with 10 to 8400 groups (a month). Prints
Markdown; keeps nothing but a plot.

    python bench/scaling.py [PLOT.png]      dry-runs and plans
    python bench/scaling.py running [N...]  processor seconds a group, with stubs for the science

Valid files without data; a calibrator passes once a sidereal day, so that every group can go.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from bench.start_up_scan import write_archive
from contimg.config import Config, load
from contimg.paths import Paths
from contimg.queue import arrivals, moves
from contimg.queue import tables as queue_tables
from contimg.runs.recovery import refresh
from contimg.store import db
from tests.workflow.test_replay import stub_workflow

SIZES = (10, 100, 279, 1000, 8400)
BIN = Path(sys.executable).parent


def run(*command: str, cpu: bool = False) -> tuple[float, float, str]:
    """Seconds (of the clock, or of processors, all children included), peak memory in GiB, and
    output."""
    before = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - before
        said.seek(0)
        text = said.read()
    if status:
        raise RuntimeError(f"{command}: status {status}: {text[-2000:]}")
    return usage.ru_utime + usage.ru_stime if cpu else seconds, usage.ru_maxrss / 2**20, text


def archive(work: Path, size: int) -> tuple[Path, Config, list[str]]:
    """A place with so many groups, all in the queue: its configuration file, configuration and
    groups."""
    site, incoming = work / "site.yaml", work / "incoming"
    incoming.mkdir()
    where = {
        "incoming": str(incoming),
        "products": str(work / "products"),
        "state": str(work / "state"),
    }
    site.write_text(yaml.safe_dump({"paths": where, "ingest": {"settle_s": 0}}))
    write_archive(incoming, size)
    config = load([site])
    known = moves.known_groups(Paths.of(config).ingest_db)
    groups = arrivals.look(config, known, time.time())
    refresh(config, known, groups)
    return site, config, sorted(g.id for g in groups)


def running(sizes: list[int]) -> None:
    """What Snakemake and its jobs cost a group, when nothing is computed."""
    print("| groups in one run | processor seconds a group | peak memory GiB |\n|---|---|---|")
    for size in sizes:
        with tempfile.TemporaryDirectory() as work:
            site, _, _ = archive(Path(work), size)
            Path(work, "workflow").mkdir()
            snakefile = stub_workflow(Path(work, "workflow"))
            command = (
                str(BIN / "snakemake"),
                "--snakefile",
                str(snakefile),
                "--profile",
                str(snakefile.parent),
            )
            seconds, memory, _ = run(
                *command, "--configfile", "config/config.yaml", str(site), cpu=True
            )
            print(f"| {size} | {seconds / size:.1f} | {memory:.2f} |", flush=True)


def main() -> None:
    """A table, and a plot if a name for it is given."""
    print(
        "| groups pending | dry-run s | GiB | jobs | `contimg plan` s | dry-run with one pending s "
        "|\n|---|---|---|---|---|---|"
    )
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as work:
            site, config, groups = archive(Path(work), size)
            options = [
                "-n",
                "-q",
                "rules",
                "--profile",
                "local",
                "--configfile",
                "config/config.yaml",
                str(site),
            ]
            dry = (str(BIN / "snakemake"), *options)
            seconds, memory, text = run(*dry)
            jobs = next(
                (line.split()[1] for line in text.splitlines() if line.startswith("total")), "0"
            )
            plan_s, _, _ = run(str(BIN / "contimg"), "plan", "--configfile", str(site))
            with db.writing(Paths.of(config).ingest_db, queue_tables.Base) as session:
                for group in groups[:-1]:
                    for state in ("in_progress", "processing_fresh", "completed"):
                        moves.move(session, group, state)
            one_s, _, _ = run(*dry)
            rows.append((size, seconds, memory, plan_s, one_s))
            print(
                f"| {size} | {seconds:.1f} | {memory:.2f} | {jobs} | {plan_s:.1f} | {one_s:.1f} |",
                flush=True,
            )
    if len(sys.argv) > 1:
        draw(rows, Path(sys.argv[1]))


def draw(rows: list[tuple], path: Path) -> None:
    """Seconds and memory against the number of groups."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes, seconds, memory, plan_s, one_s = zip(*rows, strict=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    curves = (
        (seconds, "dry-run, all pending", "o-"),
        (plan_s, "contimg plan", "s-"),
        (one_s, "dry-run, one pending", "^-"),
    )
    for values, label, marker in curves:
        left.loglog(sizes, values, marker, label=label)
    left.set(xlabel="Groups", ylabel="Seconds")
    left.legend(frameon=False)
    right.semilogx(sizes, memory, "o-")
    right.set(xlabel="Groups, all pending", ylabel="Memory of the dry-run (GiB)", ylim=(0, None))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] == ["running"]:
        running([int(n) for n in sys.argv[2:]] or [10, 100])
    else:
        main()
