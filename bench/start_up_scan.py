"""How long a watcher that was down for ten days needs to know what came: 3000 groups, 48,000 files.

Prints seconds. Nothing is kept.
"""

import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from contimg.config import Config, IngestConfig, PathsConfig
from contimg.paths import Paths
from contimg.queue import arrivals, moves
from contimg.queue import tables as queue_tables
from contimg.queue.groups import RawFile, form_groups
from contimg.queue.planning import make_plans
from contimg.runs.recovery import refresh
from contimg.store import db
from tests.workflow.replay import SPACING_S, START, SUBBANDS, template

GROUPS = 3000


def timed(what: str, function, *args, **kwargs):
    """Call and print the seconds."""
    begin = time.perf_counter()
    result = function(*args, **kwargs)
    print(f"{what:58s} {time.perf_counter() - begin:7.2f} s", flush=True)
    return result


def write_archive(folder: Path, groups: int = GROUPS) -> None:
    """Valid files without data; the 16 of a group are one file with 16 names."""
    for number in range(groups):
        begin = START + timedelta(seconds=number * SPACING_S)
        original = folder / f"{begin:%Y-%m-%dT%H:%M:%S}_sb00.hdf5"
        original.write_bytes(template(begin.timestamp() / 86400 + 2440587.5, folder))
        for subband in range(1, SUBBANDS):
            name = (
                f"{begin + timedelta(seconds=2 * subband):%Y-%m-%dT%H:%M:%S}_sb{subband:02d}.hdf5"
            )
            os.link(original, folder / name)
    (folder / "template.hdf5").unlink()


def main() -> None:
    """Print seconds."""
    with tempfile.TemporaryDirectory() as work:
        incoming = Path(work, "incoming")
        incoming.mkdir()
        paths = PathsConfig(
            incoming=incoming, products=Path(work, "products"), state=Path(work, "state")
        )
        config = Config(paths=paths, ingest=IngestConfig(settle_s=0))
        timed("(writing the archive)", write_archive, incoming)
        names = timed(
            "list 48,000 names", lambda: [RawFile.named(path) for path in incoming.iterdir()]
        )
        timed("group them by name", form_groups, names, 120, 300, SUBBANDS)
        groups = timed(
            "first look of the watcher: list, open files for 5 s, group",
            arrivals.look,
            config,
            {},
            time.time(),
            5,
        )
        timed("all into the queue", refresh, config, {}, groups)
        print(
            f"{len(groups)} groups, of which {sum(g.is_checked() for g in groups)} were looked "
            "into and can go"
        )
        groups = timed("without the limit: open every file", arrivals.look, config, {}, time.time())
        timed(
            "into the queue",
            refresh,
            config,
            moves.known_groups(Paths.of(config).ingest_db),
            groups,
        )
        known = timed("read the queue back", moves.known_groups, Paths.of(config).ingest_db)
        groups = timed("every later look", arrivals.look, config, known, time.time())
        timed("and what it writes", refresh, config, known, groups)
        plans = timed(
            "plan all of them (what a dry-run does before its DAG)", make_plans, config, time.time()
        )
        print(f"{len(plans)} groups: {sum(p.action == 'run' for p in plans.values())} to be run")
        with db.writing(Paths.of(config).ingest_db, queue_tables.Base) as session:
            for group in known:
                moves.claim(session, group, "bench")
                moves.start(session, group, resuming=False)
                moves.move(session, group, "completed")
        known = timed(
            "the same when all are completed: the queue",
            moves.known_groups,
            Paths.of(config).ingest_db,
        )
        groups = timed("  a look at the folder", arrivals.look, config, known, time.time())
        timed("  and what it writes", refresh, config, known, groups)


if __name__ == "__main__":
    main()
