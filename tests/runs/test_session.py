"""What a Snakefile is told: which groups run, in which order, from which files; and why not."""

import os
import time

import pytest

from contimg.config import Config, IngestConfig, PathsConfig
from contimg.errors import RequestError, StateError
from contimg.paths import Paths
from contimg.queue.groups import FileGroup, RawFile
from contimg.queue.planning import Plan, as_json
from contimg.runs.session import open_session
from contimg.store.files import write_json
from tests.conftest import session_of

GROUPS = [f"2026-01-25T{hour}:26:05" for hour in (21, 22, 23)]
USUAL = {"decides": True, "cores": 4, "nodes": None, "keep_staged": False, "on_node": False}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "incoming").mkdir()
    where = PathsConfig(
        incoming=tmp_path / "incoming", products=tmp_path / "products", state=tmp_path / "state"
    )
    return Config(paths=where, ingest=IngestConfig(settle_s=0))


def plan(config, group, **values):
    files = {sb: RawFile.named(config.paths.incoming / f"{group}_sb{sb:02d}.hdf5") for sb in (1, 0)}
    usual = {"action": "run", "reason": "because", "calset": group}
    return Plan(group=FileGroup(group, files), **usual | values)


def test_calibrator_groups_come_first_then_the_newest_or_the_oldest(config):
    plans = {g: plan(config, g) for g in GROUPS}
    plans[GROUPS[1]] = plan(config, GROUPS[1], calibrators=("3C48",))
    plans["x"] = plan(config, GROUPS[0], action="done")
    in_order = session_of(config, plans).to_run()
    newest_first = config.ingest.order == "newest"
    rest = [GROUPS[2], GROUPS[0]] if newest_first else [GROUPS[0], GROUPS[2]]
    assert in_order == [GROUPS[1], *rest]


def test_what_cannot_be_worked_on_is_refused_in_words(config):
    waiting = plan(config, GROUPS[0], action="waiting", reason="no set", calset=None)
    session = session_of(config, {GROUPS[0]: waiting})
    with pytest.raises(RequestError, match="cannot be imaged now: no set"):
        session.plan_of(GROUPS[0])
    with pytest.raises(RequestError, match="has no files in"):
        session.plan_of(GROUPS[1])
    assert session.left_out() == [f"not in this run: {GROUPS[0]} waiting: no set"]
    assert session.summary().startswith("Nothing to be done; 1 waiting.")
    assert session.imaged([GROUPS[0]]) == []


def test_files_of_the_future_are_no_inputs_and_absent_ones_only_where_they_are_needed(config):
    group = GROUPS[0]
    one = plan(config, group)
    session = session_of(config, {group: one})
    files = [path for _, path in sorted(one.group.files.items())]
    assert session.raw_inputs(group) == files  # absent: Snakemake says so
    for path in files:
        path.write_bytes(b"x")
    os.utime(files[1], (time.time() + 3600,) * 2)
    assert session.raw_inputs(group) == files[:1]
    paths = Paths.of(config)
    files[0].unlink()
    paths.ms(group).mkdir(parents=True)
    write_json(paths.result(group, "concat"), {})
    assert session.raw_inputs(group) == []  # converted: nobody reads them any more


def test_a_target_chooses_first_and_waits_for_a_set_that_is_solved_in_this_run(config):
    own, other = GROUPS[:2]
    plans = {
        own: plan(config, own, calibrators=("3C48",), depends_on=own),
        other: plan(config, other, calset=own, depends_on=own, redo=("image",)),
    }
    session = session_of(config, plans)
    assert not session.chooses_first(own)
    assert session.chooses_first(other)
    assert session.waits_for(own) == []
    assert session.waits_for(other) == [own]
    assert session.is_redone(other)
    assert session.is_redone(other, "image")
    assert not session.is_redone(other, "apply")
    assert not session.is_redone("unknown")


def test_options_that_would_do_harm_are_refused(config):
    here, there = session_of(config, {}), session_of(config, {}, cluster=True)
    assert "--touch" in here.misused(touch=True, local=True)
    assert here.misused(touch=False, local=True) is None
    assert "--cores" in here.misused(touch=False, local=False)
    assert there.misused(touch=False, local=False) is None
    assert (here.lane, there.lane) == ("local", "cluster")


def test_a_job_takes_the_plan_of_its_run_and_one_on_a_node_needs_it(config, monkeypatch):
    values = config.model_dump(mode="json")
    monkeypatch.setenv("CONTIMG_RUN_ID", "run 7")
    monkeypatch.delenv("CONTIMG_CLUSTER_NODE", raising=False)
    with pytest.raises(StateError, match="no plan of run run 7 in"):
        open_session(values, (), **USUAL | {"decides": False, "on_node": True})
    saved = {
        "groups": {GROUPS[0]: as_json(plan(config, GROUPS[0]))},
        "staging": "/somewhere",
        "software": "1.2 abc",
    }
    write_json(Paths.of(config).run_snapshot("run 7"), saved)
    session = open_session(values, (), **USUAL | {"decides": False})
    assert list(session.plans) == [GROUPS[0]]
    assert str(session.staging) == "/somewhere"


def test_without_cores_it_is_for_a_cluster(config):
    values = config.model_dump(mode="json")
    assert open_session(values, (), **USUAL | {"cores": None}).on_cluster
    assert open_session(values, (), **USUAL | {"cores": 1, "nodes": 64}).on_cluster
    assert not open_session(values, (), **USUAL | {"cores": 1}).on_cluster
