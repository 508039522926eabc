"""Which groups a run of the watcher gets; and what it does when the folder is not there."""

import logging
import time
from pathlib import Path

import pytest

from contimg.config import Config, IngestConfig, PathsConfig
from contimg.errors import AbsentError
from contimg.queue import arrivals, moves
from contimg.queue.groups import FileGroup
from contimg.queue.planning import Plan
from contimg.runs.watch import Refusals, Watcher, choose_slice
from contimg.visibilities import uvh5


def plans(**groups):
    """`C=None`: runs with its own or a registered set; `T="C"`: with the set of group C, solved in
    this run."""
    return {
        g: Plan(FileGroup(g, {}), "run", "", depends_on=needs)
        for g, needs in sorted(groups.items())
    }


@pytest.mark.parametrize(
    ("newest_first", "most", "expected"),
    [
        (False, 9, ["c", "a", "b", "d"]),
        (True, 9, ["d", "c", "b", "a"]),
        (False, 2, ["c", "a"]),
        (True, 2, ["d", "c"]),
        (False, 1, ["c"]),  # a needs c first
    ],
)
def test_calibrators_come_ahead_of_the_targets_that_need_them(newest_first, most, expected):
    found = plans(a="c", b="c", c="c", d=None)
    assert choose_slice(found, set(found), newest_first, most) == expected


def test_a_target_waits_while_its_calibrator_group_backs_off():
    found = plans(a="c", c="c", d=None)
    assert choose_slice(found, {"a", "d"}, False, 9) == ["d"]


def test_only_what_can_run_is_started():
    found = plans(a=None, b=None) | {
        "c": Plan(FileGroup("c", {}), "waiting", "waits for calibration")
    }
    assert choose_slice(found, {"a", "c"}, False, 9) == ["a"]


def blames(broken, ready, rounds=30):
    """Whom `Refusals` blames in runs of up to three groups that do not begin when `broken` says so
    of one of them."""
    refusals, blamed = Refusals(), []
    ready = set(ready)
    for _ in range(rounds):
        if not ready:
            break
        batch = refusals.alone(sorted(ready))[:1] or sorted(ready)[:3]
        if any(broken(group) for group in batch):
            if culprit := refusals.refused(batch):
                blamed.append(culprit)
                ready.discard(culprit)
        else:
            refusals.begun(batch)
            ready -= set(batch)
    return blamed, ready


def test_the_one_group_with_which_no_run_begins_is_to_blame():
    for poison in "abcde":
        assert blames(lambda group, poison=poison: group == poison, "abcde") == ([poison], set())


def test_no_group_is_to_blame_when_no_run_begins_at_all():
    assert blames(lambda group: True, "abcde") == ([], set("abcde"))
    assert blames(lambda group: True, "a") == ([], {"a"})


def test_one_other_group_is_witness_enough():
    refusals = Refusals()
    assert refusals.refused(["d", "e"]) is None
    assert refusals.alone(list("edcba")) == ["e", "d", "c"]
    assert refusals.refused(["e"], killed=True) is None
    assert refusals.alone(list("edcba")) == ["e", "d", "c"]
    assert refusals.in_a_row == 2


def test_after_the_workflow_is_mended_nobody_was_to_blame():
    calls = iter([True] * 9 + [False] * 99)
    assert blames(lambda group: next(calls), "abcde") == ([], set())


@pytest.fixture
def config(tmp_path):
    paths = PathsConfig(
        incoming=tmp_path / "incoming", products=tmp_path / "products", state=tmp_path / "state"
    )
    return Config(paths=paths, ingest=IngestConfig(settle_s=0))


def test_a_disk_that_is_not_mounted_fails_no_group(config, make_group):
    group = make_group(folder="incoming", antennas=4, channels=1, integrations=2)
    watcher = Watcher(config, (), "profiles/local")
    watcher._stops = 1  # look, start nothing
    watcher._step()
    before = moves.known_groups(watcher.paths.ingest_db)
    assert before[group.id].state == "pending"
    config.paths.incoming.rename(config.paths.incoming.with_name("unmounted"))
    for _ in range(2):
        with pytest.raises(AbsentError, match="is the disk mounted"):
            watcher._step()
        config.paths.incoming.mkdir(exist_ok=True)  # an empty mount point
    assert moves.known_groups(watcher.paths.ingest_db) == before


def test_without_events_it_looks_from_time_to_time(config, caplog):
    with caplog.at_level(logging.WARNING):
        assert Watcher(config, (), "profiles/local")._observe() is None  # there is no such folder
    assert "looking every 10 s" in caplog.text


def test_a_growing_file_is_left_alone(config, make_group):
    group = make_group(folder="incoming", antennas=4, channels=1, integrations=2)
    patient = config.model_copy(update={"ingest": IngestConfig(settle_s=60)})
    (seen,) = arrivals.look(patient, {}, time.time())
    assert not seen.is_checked()
    assert "16 of 16 subbands" in seen.shortage(16)
    (later,) = arrivals.look(patient, {}, time.time() + 61)
    assert later.is_checked()
    assert later.id == group.id


def test_a_run_waits_for_files_that_came_this_moment(config, make_group):
    make_group(folder="incoming", antennas=4, channels=1, integrations=2)
    patient = config.model_copy(update={"ingest": IngestConfig(settle_s=0.5)})
    (seen,) = arrivals.look(patient, {}, time.time(), wait=True)
    assert seen.is_checked()


def test_a_disk_that_fails_for_a_moment_condemns_no_file(config, make_group, monkeypatch):
    make_group(folder="incoming", antennas=4, channels=1, integrations=2)
    real, broken = uvh5.inspect, [True]

    def inspect(path):
        if broken and "_sb05" in path.name:
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(arrivals, "inspect", inspect)
    (seen,) = arrivals.look(config, {}, time.time())
    assert not seen.is_checked()
    assert seen.others == ()
    broken.clear()
    (seen,) = arrivals.look(config, {}, time.time())
    assert seen.is_checked()


def test_a_file_is_opened_once(config, make_group, monkeypatch):
    make_group(folder="incoming", antennas=4, channels=1, integrations=2)
    opened = []
    real = uvh5.inspect
    monkeypatch.setattr(arrivals, "inspect", lambda path: opened.append(path) or real(path))
    watcher = Watcher(config, (), "profiles/local")
    watcher._stops = 1
    for _ in range(3):
        watcher._step()
    assert len(opened) == len(set(opened)) == 16
    next(iter(Path(config.paths.incoming).glob("*_sb05.hdf5"))).touch()
    watcher._step()
    assert len(opened) == 17
