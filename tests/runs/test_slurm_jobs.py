"""What is asked of SLURM, without one; tests/slurm has the real one."""

import os

import pytest
from snakemake_executor_plugin_slurm import Executor as slurm_executor

from contimg.errors import ContimgError, LockError
from contimg.paths import Paths
from contimg.runs import slurm
from contimg.store.files import write_json


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "state").mkdir()
    found = Paths(
        tmp_path / "incoming", tmp_path / "products", tmp_path / "state", tmp_path / "state"
    )
    write_json(found.cluster_mark, {"run": "r", "jobs": "a1-b2"})
    return found


def test_a_run_stalls_when_nothing_moves_and_slurm_has_no_job_of_it(paths, monkeypatch):
    clock, moves, jobs = [0.0], [7], [["12"]]
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(slurm, "left_jobs", lambda _: jobs[0])
    stall = slurm.Stall(paths, lambda: moves[0], 600)

    def after(seconds):
        clock[0] += seconds
        return stall.seen()

    assert not after(5000)  # a job waits in SLURM's queue
    jobs[0] = []
    assert not after(30)
    assert not after(500)
    moves[0] = 8  # something was indexed here
    assert not after(30)
    assert [after(300), after(300), after(30)] == [False, False, True]
    assert not after(30)  # counted anew: time for the run to end
    monkeypatch.setattr(slurm, "left_jobs", lambda _: (_ for _ in ()).throw(LockError("no answer")))
    assert not after(5000)
    monkeypatch.setattr(slurm, "left_jobs", lambda _: [])
    paths.cluster_mark.unlink()  # not on a cluster at all
    assert not after(5000)


@pytest.mark.parametrize(("age_s", "said"), [(120, 1), (300, 0), (3600, 0)])
def test_a_controller_that_forgets_jobs_too_early_is_told(monkeypatch, age_s, said):
    answer = f"MaxTasksPerNode = 512\nMinJobAge               = {age_s} sec\n"
    monkeypatch.setattr(
        slurm,
        "_slurm",
        lambda *command: answer if command == ("scontrol", "show", "config") else "",
    )
    words = []
    slurm.warn_of_short_memory(words.append)
    assert len(words) == said


def test_only_jobs_of_this_user_and_this_state_folder_are_ours(paths, monkeypatch):
    """K38: whatever others call theirs."""
    asked, mine = [], "a1-b2"
    rows = (
        f"1|RUNNING|\n2|RUNNING|{mine}\n3|PENDING|a b | "
        f"c\n4|COMPLETED|{mine}\n5|PENDING|{mine}\n6|RUNNING|{mine}_x\nslurm: warning\n\n"
    )
    monkeypatch.setattr(slurm, "_slurm", lambda *command: (asked.append(command), rows)[1])
    assert slurm.left_jobs(paths) == ["2", "5"]
    assert f"--user={os.getuid()}" in asked[0]
    paths.cluster_mark.write_text("")  # a power cut
    with pytest.raises(LockError, match="does not say what its run's jobs are called"):
        slurm.left_jobs(paths)
    paths.cluster_mark.unlink()
    assert slurm.left_jobs(paths) == []


def test_a_plugin_whose_parts_have_other_names_is_refused():
    """K38: jobs of a run that died could not be found."""

    class Executor:
        run_uuid = "x"

    Executor.__module__ = "snakemake_executor_plugin_slurm"
    with pytest.raises(
        ContimgError,
        match=r"has no run_job, _report_job_error_threadsafe: .* what envs/requirements.txt says",
    ):
        slurm.prepare(Executor())
    Executor.__module__ = "snakemake_executor_plugin_lsf"
    with pytest.raises(
        ContimgError, match="executor snakemake_executor_plugin_lsf: only SLURM's is known here"
    ):
        slurm.prepare(Executor())
    assert all(
        hasattr(slurm_executor, name) for name in ("run_job", "_report_job_error_threadsafe")
    )
