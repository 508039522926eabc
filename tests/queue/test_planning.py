"""What a run would do, from hand-made states: no job runs here."""

import json
import os
import time
from contextlib import contextmanager

import pytest

from contimg.calibration import registry
from contimg.config import Config, IngestConfig, PathsConfig
from contimg.errors import LockError, RequestError, StateError
from contimg.paths import LANES, Paths
from contimg.queue import arrivals, moves
from contimg.queue import tables as queue_tables
from contimg.queue.planning import make_plans, stale, targets
from contimg.runs import slurm
from contimg.runs.run import Run
from contimg.simulate import Simulation, simulate_group
from contimg.store import db
from contimg.store.files import write_json
from contimg.visibilities import uvh5
from tests.conftest import CALIBRATOR_START, STATIONS, TARGET_START, session_of

LATER_CALIBRATOR = "2026-03-02T20:08:20"  # 3C454.3 has drifted, but is still in the beam
NEXT_EPOCH = "2026-03-03T19:59:14"  # a sidereal day later, on its own calibrator
SMALL = {"antennas": 6, "channels": 1, "integrations": 3, "skew_s": 0.0}


@pytest.fixture
def config(tmp_path):
    paths = PathsConfig(
        incoming=tmp_path / "incoming", products=tmp_path / "products", state=tmp_path / "state"
    )
    return Config(paths=paths, ingest=IngestConfig(settle_s=0))  # the files were written just now


AGAIN = ("caltables", "apply", "image", "photometry", "qa")


@pytest.fixture
def observe(config, sky):
    def write(start, **options):
        return simulate_group(
            config.paths.incoming, Simulation(start=start, **SMALL | options), sky, STATIONS
        )

    return write


def plans(config, only=()):
    return make_plans(config, time.time(), only)


def new_run(config, only=(), cluster=False, again=None):
    """With all that can go, as Snakemake's DAG has it."""
    planned = make_plans(config, time.time(), only, LANES[cluster])
    jobs = {
        g: () for g, plan in planned.items() if plan.action == "run" and (g in only or not only)
    }
    of_slurm = "x" if cluster else ""
    begun_by = session_of(config, planned, only, cluster)
    return Run(begun_by, jobs | (again or {}), of_slurm=of_slurm)


@contextmanager
def running(config, only=()):
    run = new_run(config, only)
    with run._held:
        run.begin()
        yield run
        run.end()


def leave_error(run, stage, error):
    """What a stage leaves behind when the data are at fault."""
    words = {"stage": stage, "error": error, "permanent": True, "run": run.id}
    write_json(run.paths.error(CALIBRATOR_START), words)


def state(config, group):
    with db.reading(Paths.of(config).ingest_db) as session:
        row = session.get(queue_tables.Group, group)
        return row.state, row.retry_count


def solved(config, group, mid_mjd, science=True):
    paths = Paths.of(config)
    table = paths.caltable(group, "B")
    table.mkdir(parents=True)
    start, end = registry.validity(mid_mjd, config.calibration)
    calset = registry.CalSet(
        group, mid_mjd, 16.15, "3C454.3", "", 1.0, start, end, (("B", str(table)),), science=science
    )
    registry.register(paths.registry_db, calset, "1")
    write_json(paths.result(group, "register"), {"set_name": group})


def test_a_target_depends_on_the_nearest_calibrator_of_its_run(config, observe):
    observe(CALIBRATOR_START)
    observe(TARGET_START)
    found = plans(config)
    assert {g: (p.action, p.calset, p.depends_on) for g, p in found.items()} == {
        CALIBRATOR_START: ("run", CALIBRATOR_START, CALIBRATOR_START),
        TARGET_START: ("run", CALIBRATOR_START, CALIBRATOR_START),
    }


def test_a_target_between_two_calibrators_of_its_run_waits_for_both(config, observe):
    """Its gains are interpolated, whatever the order of processing."""
    after = "2026-03-03T19:59:14"
    for group in (CALIBRATOR_START, TARGET_START, after):
        observe(group)
    found = plans(config)
    target = found[TARGET_START]
    assert found[after].calibrators
    assert (target.calset, target.needs) == (CALIBRATOR_START, (CALIBRATOR_START, after))
    session = session_of(config, found)
    assert session.waits_for(TARGET_START) == [CALIBRATOR_START, after]
    # a set that is there is not waited for
    solved(config, after, found[after].mid_mjd)
    assert plans(config)[TARGET_START].needs == (CALIBRATOR_START,)


def test_a_choice_that_was_made_stays_though_a_nearer_set_comes(config, observe):
    observe(TARGET_START)
    target = plans(config)[TARGET_START]
    assert target.action == "waiting"
    solved(config, "2026-03-02T10:00:00", target.mid_mjd - 0.4)
    assert plans(config)[TARGET_START].calset == "2026-03-02T10:00:00"
    write_json(
        Paths.of(config).result(TARGET_START, "caltables"), {"set_name": "2026-03-02T10:00:00"}
    )
    observe(CALIBRATOR_START)
    again = plans(config)[TARGET_START]
    assert (again.calset, again.depends_on) == ("2026-03-02T10:00:00", None)


def test_a_registered_calibrator_still_goes_on_with_its_own_set(config, observe):
    observe(CALIBRATOR_START)
    solved(config, CALIBRATOR_START, plans(config)[CALIBRATOR_START].mid_mjd)
    plan = plans(config)[CALIBRATOR_START]
    assert (plan.action, plan.calset, plan.depends_on) == ("run", CALIBRATOR_START, None)


def test_files_that_are_gone_leave_their_group_and_the_others_go_on(config, observe):
    paths = observe(CALIBRATOR_START)
    observe(TARGET_START)
    with running(config) as run:
        run.job_started(CALIBRATOR_START, "convert")
        leave_error(run, "convert", "SubbandError: bad")
        run.job_failed(CALIBRATOR_START, "convert")
    assert state(config, CALIBRATOR_START) == ("failed", 1)
    paths[7].unlink()  # as the message says: remove it
    plan = plans(config)[CALIBRATOR_START]
    assert plan.action == "failed"
    assert plan.missing == (7,)
    for path in paths:
        path.unlink(missing_ok=True)
    assert plans(config)[CALIBRATOR_START].reason == "its raw files are gone"
    assert plans(config)[TARGET_START].action == "waiting"


def test_a_removed_duplicate_gives_way_to_the_other(config, observe):
    first = observe(CALIBRATOR_START)[3]
    other = first.with_name(first.name.replace(":10_", ":12_"))
    other.write_bytes(first.read_bytes())
    with running(config):
        assert [f.path for f in plans(config)[CALIBRATOR_START].group.others] == [other]
    first.unlink()
    plan = plans(config)[CALIBRATOR_START]
    assert (plan.action, plan.missing, plan.group.files[3]) == ("run", (), other)


def test_the_budget_ends_for_a_group_that_kills_its_run(config, observe):
    observe(CALIBRATOR_START)
    counts = []
    for _ in range(8):
        if plans(config)[CALIBRATOR_START].action != "run":
            break
        run = new_run(config)
        run.begin()
        run.job_started(CALIBRATOR_START, "convert")
        counts.append(state(config, CALIBRATOR_START)[1])
        run._held.close()  # the run dies: no end(), no more events
    assert counts == [0, 1, 2, 3]
    with running(config):
        assert state(config, CALIBRATOR_START)[0] == "failed"
    assert plans(config)[CALIBRATOR_START].action == "failed"


def test_a_stage_asked_for_alone_spends_no_attempt(config, observe):
    observe(CALIBRATOR_START)
    for _ in range(6):
        with running(config, [CALIBRATOR_START]) as run:
            run.job_started(CALIBRATOR_START, "convert")
            run.job_finished(CALIBRATOR_START, "convert")
    assert state(config, CALIBRATOR_START) == ("pending", 0)


def test_a_failure_whose_event_is_late_keeps_its_reason(config, observe):
    observe(CALIBRATOR_START)
    with running(config) as run:
        run.job_started(CALIBRATOR_START, "convert")
        leave_error(run, "convert", "SubbandError: x")
    assert state(config, CALIBRATOR_START)[0] == "failed"
    assert plans(config)[CALIBRATOR_START].reason == "convert: SubbandError: x"
    assert plans(config, [CALIBRATOR_START])[CALIBRATOR_START].action == "run"  # asked for by name


def test_an_earlier_file_gives_a_collecting_group_its_id(config, observe):
    late, *_ = observe(CALIBRATOR_START, missing=tuple(range(2, 16)))
    early = late.with_name(late.name.replace(":10_sb00", ":05_sb05"))
    with running(config):
        assert state(config, CALIBRATOR_START)[0] == "collecting"
    early.write_bytes(late.read_bytes())
    with running(config):
        assert list(plans(config)) == [early.name[:19]]
        assert state(config, early.name[:19])[0] == "collecting"


def test_impossible_dates_and_stray_subbands_stop_nobody(config, observe):
    observe(CALIBRATOR_START)
    for name in ("2026-02-30T00:00:00_sb01.hdf5", f"{CALIBRATOR_START}_sb20.hdf5"):
        (config.paths.incoming / name).write_bytes(b"")
    assert [(g, p.action) for g, p in plans(config).items()] == [(CALIBRATOR_START, "run")]


def test_a_second_observation_that_begins_while_the_first_runs_is_a_group_of_its_own(
    config, observe
):
    """The correlator was restarted: 100 s after the first, within the tolerance of the names."""
    observe(CALIBRATOR_START)
    second = "2026-03-02T20:04:50"
    for completed in (False, True):
        with running(config, [CALIBRATOR_START]) as run:
            run.job_started(CALIBRATOR_START, "convert")
            if not completed:
                observe(second)
                groups = arrivals.look(config, moves.known_groups(run.paths.ingest_db), time.time())
                assert [(g.id, len(g.members)) for g in groups] == [
                    (CALIBRATOR_START, 16),
                    (second, 16),
                ]
                with db.writing(run.paths.ingest_db, queue_tables.Base) as session:
                    moves.record(
                        session,
                        groups,
                        moves.known_groups(run.paths.ingest_db),
                        config.ingest,
                        time.time(),
                    )
            else:
                write_json(run.paths.result(CALIBRATOR_START, "index"), {"seconds": 1.0})
                run.job_finished(CALIBRATOR_START, "index")
        assert state(config, second) == ("pending", 0)
    assert state(config, CALIBRATOR_START)[0] == "completed"
    assert plans(config)[second].action == "run"


def test_new_data_of_a_failed_group_are_not_given_its_old_results(config, observe):
    paths = observe(CALIBRATOR_START)
    with running(config) as run:
        run.job_started(CALIBRATOR_START, "image")
        leave_error(run, "image", "x")
        for stage in ("caltables", "convert", "apply"):
            write_json(run.paths.result(CALIBRATOR_START, stage), {"set_name": CALIBRATOR_START})
    assert state(config, CALIBRATOR_START)[0] == "failed"
    content = paths[3].read_bytes()
    paths[3].unlink()
    paths[3].write_bytes(content)
    os.utime(paths[3], (1e9, 1e9))  # as rsync -a does: Snakemake would not see that it is new
    assert plans(config)[CALIBRATOR_START].redo == ("convert",)
    with running(config):
        assert state(config, CALIBRATOR_START) == ("in_progress", 0)
        left = [p.name.split(".")[-2] for p in (config.paths.products / "results").iterdir()]
        # the choice of its own set too: that will be another one, by the same name
        assert left == []


def test_a_choice_that_was_not_applied_yields_when_its_set_is_solved_again_or_retired(
    config, observe
):
    """Otherwise its tables would be refused as altered at each attempt, or applied against an
    operator's word."""
    observe(CALIBRATOR_START)
    observe(TARGET_START)
    mid_mjd = plans(config)[CALIBRATOR_START].mid_mjd
    solved(config, CALIBRATOR_START, mid_mjd)
    paths = Paths.of(config)
    (calset,) = registry.active_sets(paths.registry_db)
    choice = {"set_name": CALIBRATOR_START, "checksums": list(calset.checksums)}
    write_json(paths.result(TARGET_START, "caltables"), choice)
    assert plans(config)[TARGET_START].depends_on is None
    paths.result(CALIBRATOR_START, "register").unlink()  # as `contimg reprocess` does
    plan = plans(config)[TARGET_START]
    assert (plan.depends_on, plan.redo) == (CALIBRATOR_START, AGAIN)
    with pytest.raises(LockError, match="run it again"), running(config):
        pass
    assert not paths.result(TARGET_START, "caltables").exists()
    with running(config):
        pass
    write_json(paths.result(CALIBRATOR_START, "register"), {})
    write_json(paths.result(TARGET_START, "caltables"), choice)
    registry.retire(paths.registry_db, CALIBRATOR_START, "antenna 12 swapped")
    plan = plans(config)[TARGET_START]
    assert (plan.action, plan.redo) == ("waiting", AGAIN)
    paths.result(CALIBRATOR_START, "register").unlink()
    assert "its own set retired: antenna 12 swapped" in plans(config)[CALIBRATOR_START].reason
    # applied already: nothing is changed behind its back
    write_json(paths.result(TARGET_START, "apply"), {})
    assert plans(config)[TARGET_START].calset == CALIBRATOR_START


def test_a_set_whose_tables_are_gone_is_not_planned_with(config, observe):
    observe(TARGET_START)
    solved(config, "2026-03-02T10:00:00", plans(config)[TARGET_START].mid_mjd - 0.4)
    Paths.of(config).caltable("2026-03-02T10:00:00", "B").rmdir()
    plan = plans(config)[TARGET_START]
    assert plan.action == "waiting"
    assert "1 sets failed" in plan.reason


def test_start_end_and_groups_choose(config, observe):
    observe(CALIBRATOR_START)
    observe(LATER_CALIBRATOR)

    def chosen(**ingest_options):
        one = config.model_copy(update={"ingest": IngestConfig(**ingest_options)})
        return [g for g, p in plans(one).items() if p.action == "run"]

    assert chosen() == [CALIBRATOR_START, LATER_CALIBRATOR]
    assert chosen(start=LATER_CALIBRATOR) == [LATER_CALIBRATOR]
    assert chosen(end=LATER_CALIBRATOR) == [CALIBRATOR_START]
    assert chosen(groups=(LATER_CALIBRATOR,)) == [LATER_CALIBRATOR]
    with pytest.raises(RequestError, match="calibrator/3C48: there is no such group"):
        targets(["-n", "calibrator/3C48"], plans(config))
    both = [CALIBRATOR_START, LATER_CALIBRATOR]
    asked = {
        "day/2026-03-02": both,
        f"group/{LATER_CALIBRATOR}": both[1:],
        "calibrator/3C454.3": both,
    }
    assert targets(["--forcerun", "image", *asked], plans(config)) == asked


def test_files_of_groups_that_nobody_asked_for_are_not_even_looked_at(config, observe, monkeypatch):
    """Nor is a group at the edge cut in two; one that is incomplete beyond it stays in the
    queue."""
    opened, inspect = [], uvh5.inspect
    monkeypatch.setattr(
        arrivals, "inspect", lambda path: opened.append(path.name[:19]) or inspect(path)
    )
    observe(CALIBRATOR_START, missing=(3,))
    observe(NEXT_EPOCH, skew_s=4.0)
    with running(config):
        assert {g: state(config, g)[0] for g in (CALIBRATOR_START, NEXT_EPOCH)} == {
            CALIBRATOR_START: "collecting",
            NEXT_EPOCH: "in_progress",
        }
    observe(TARGET_START)
    observe(LATER_CALIBRATOR)
    opened.clear()
    late = config.model_copy(
        update={"ingest": IngestConfig(settle_s=0, start=TARGET_START, end="2026-03-03T19:59:16")}
    )
    assert set(plans(late)) == {TARGET_START, NEXT_EPOCH}
    assert set(opened) == {TARGET_START}
    later = config.model_copy(
        update={"ingest": IngestConfig(settle_s=0, start="2026-03-03T19:59:16")}
    )
    assert set(plans(later)) == set()  # its first name is earlier
    assert set(plans(later, [LATER_CALIBRATOR])) == {LATER_CALIBRATOR}
    with running(later):
        pass
    assert state(config, CALIBRATOR_START)[0] == "collecting"


def test_the_snapshot_of_a_run_says_what_it_saw(config, observe):
    observe(CALIBRATOR_START)
    with running(config) as run:
        snapshot = json.loads(run.paths.run_snapshot(run.id).read_text())
    assert snapshot["groups"][CALIBRATOR_START]["action"] == "run"


def test_what_fast_mode_left_is_done_again_for_science(config, observe):
    observe(CALIBRATOR_START)
    observe(TARGET_START)
    paths, mid_mjd = Paths.of(config), plans(config)[CALIBRATOR_START].mid_mjd
    solved(config, f"{CALIBRATOR_START}.fast", mid_mjd, science=False)
    paths.result(f"{CALIBRATOR_START}.fast", "register").unlink()
    own = {"set_name": f"{CALIBRATOR_START}.fast", "science": False}
    write_json(paths.result(CALIBRATOR_START, "register"), own)
    write_json(paths.result(TARGET_START, "caltables"), own)
    write_json(paths.result(TARGET_START, "apply"), own)
    fast = config.model_copy(
        update={"calibration": config.calibration.model_copy(update={"fast": True})}
    )
    found = plans(fast)
    assert {p.calset for p in found.values()} == {f"{CALIBRATOR_START}.fast"}
    assert not any(p.redo or p.depends_on for p in found.values())
    assert "NON_SCIENCE" in found[TARGET_START].reason
    found = plans(config)
    assert (
        {p.calset for p in found.values()}
        == {p.depends_on for p in found.values()}
        == {CALIBRATOR_START}
    )
    assert found[CALIBRATOR_START].redo == ("solve", "register")
    assert found[TARGET_START].redo == AGAIN
    with pytest.raises(LockError, match="run it again"), running(config):
        pass
    assert not [
        p for p in paths.result("x", "y").parent.iterdir() if "solve" in p.name or "apply" in p.name
    ]


def test_groups_that_would_now_get_another_set_are_listed(config):
    paths = Paths.of(config)
    solved(config, "2026-03-02T10:00:00", 61101.4)
    write_json(paths.result(TARGET_START, "convert"), {"mid_mjd": 61101.8, "app_dec_deg": 16.15})
    write_json(paths.result(TARGET_START, "caltables"), {"set_name": "2026-03-02T10:00:00"})
    assert stale(config) == []
    solved(config, "2026-03-02T19:00:00", 61101.79)
    ((group, has, now),) = stale(config)
    assert (group, has) == (TARGET_START, "2026-03-02T10:00:00")
    assert now.startswith("2026-03-02T19:00:00: nearest valid set (0.24 h earlier")
    registry.retire(paths.registry_db, "2026-03-02T19:00:00", "x")
    registry.retire(paths.registry_db, "2026-03-02T10:00:00", "x")
    assert stale(config)[0][2].startswith("none")


def test_a_run_on_a_cluster_and_one_here_share_the_groups(config, observe, monkeypatch):
    """The cluster solves a calibrator group: here its target waits, and a group of another epoch is
    free."""
    for start in (CALIBRATOR_START, TARGET_START, NEXT_EPOCH):
        observe(start)
    paths = Paths.of(config)
    monkeypatch.setattr(slurm, "_slurm", lambda *_: "")
    there = new_run(config, [CALIBRATOR_START], cluster=True)
    late = new_run(config, [NEXT_EPOCH, CALIBRATOR_START])
    there.begin()
    assert {g: state(config, g)[0] for g in (CALIBRATOR_START, TARGET_START)} == {
        CALIBRATOR_START: "in_progress",
        TARGET_START: "pending",
    }
    found = plans(config)
    assert {g: p.action for g, p in found.items()} == {
        CALIBRATOR_START: "running",
        TARGET_START: "waiting",
        NEXT_EPOCH: "run",
    }
    assert found[TARGET_START].depends_on == CALIBRATOR_START
    assert f"run {there.id} solves" in found[TARGET_START].reason
    # also when asked for by name
    assert plans(config, [CALIBRATOR_START])[CALIBRATOR_START].action == "running"
    with (
        late._held,
        pytest.raises(LockError, match="its groups changed while this run was planned"),
    ):
        late.begin()
    with (
        db.writing(paths.ingest_db, queue_tables.Base) as session,
        pytest.raises(StateError, match="no move from in_progress"),
    ):
        late._claim(session, CALIBRATOR_START)
    assert state(config, NEXT_EPOCH) == ("pending", 0)
    with pytest.raises(LockError, match=r"another run \(cluster\)"):
        new_run(config, [NEXT_EPOCH], cluster=True).begin()
    with running(config) as here:
        here.job_started(NEXT_EPOCH, "convert")
        assert state(config, NEXT_EPOCH)[0] == "processing_fresh"
        assert there.id in {s.owner for s in moves.known_groups(paths.ingest_db).values()}
    there.job_started(CALIBRATOR_START, "convert")
    assert state(config, CALIBRATOR_START)[0] == "processing_fresh"
    there.end()
    assert state(config, CALIBRATOR_START) == ("pending", 0)


def test_groups_of_a_cluster_run_that_died_are_free_when_its_jobs_have_ended(
    config, observe, monkeypatch
):
    observe(CALIBRATOR_START)
    observe(NEXT_EPOCH)
    paths, answers = Paths.of(config), [""]

    def answer(*command):
        if not answers:
            raise LockError("squeue: Unable to contact slurm controller")
        return answers.pop(0)

    monkeypatch.setattr(slurm, "_slurm", answer)
    there = new_run(config, [CALIBRATOR_START], cluster=True)
    there.begin()
    write_json(paths.cluster_mark, {"run": there.id, "jobs": "x"})  # it had submitted jobs
    there._held.close()  # kill -9
    assert plans(config)[CALIBRATOR_START].action == "running"
    # its successor takes it
    assert make_plans(config, time.time(), lane="cluster")[CALIBRATOR_START].action == "run"

    answers.clear()
    with running(config):  # nobody knows whether its jobs run: the other group goes on
        assert {g: state(config, g)[0] for g in (CALIBRATOR_START, NEXT_EPOCH)} == {
            CALIBRATOR_START: "in_progress",
            NEXT_EPOCH: "in_progress",
        }
        assert moves.known_groups(paths.ingest_db)[CALIBRATOR_START].owner == there.id
    job = "7|RUNNING|x"
    answers += [job, "", job.replace("RUNNING", "CANCELLED")]
    with running(config):
        assert not answers
        assert state(config, CALIBRATOR_START)[0] == "pending"  # planned before it was free
    assert not paths.cluster_mark.exists()
    assert plans(config)[CALIBRATOR_START].action == "run"


def test_a_group_that_is_done_again_is_not_done_until_it_is(config, observe):
    """--forcerun image on a finished group: when that run dies, the old result must not make it
    count as finished."""
    observe(CALIBRATOR_START)
    with running(config) as run:
        run.job_started(CALIBRATOR_START, "image")
        for stage in ("register", "image", "qa", "index"):
            write_json(run.paths.result(CALIBRATOR_START, stage), {"stage": stage})
    assert state(config, CALIBRATOR_START)[0] == "completed"
    with pytest.raises(RequestError, match="contimg reprocess GROUP --from solve"):
        new_run(config, [CALIBRATOR_START], again={CALIBRATOR_START: ["solve", "register"]}).begin()
    run = new_run(config, [CALIBRATOR_START], again={CALIBRATOR_START: ["index", "image", "qa"]})
    run.begin()
    run.job_started(CALIBRATOR_START, "image")
    run._held.close()  # kill -9
    assert run.paths.result(CALIBRATOR_START, "register").exists()
    with running(config, [CALIBRATOR_START]):
        assert state(config, CALIBRATOR_START)[0] == "in_progress"
    assert plans(config)[CALIBRATOR_START].action != "done"
