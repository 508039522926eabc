"""One stage of one group by hand, without Snakemake: the same log, the same result."""

import multiprocessing
import os
import time
from importlib import import_module
from pathlib import Path

from contimg.chain import CHAIN, LAST, Stage
from contimg.config import Config
from contimg.errors import ContimgError, RequestError
from contimg.paths import Paths
from contimg.processes import RUN_ID, RUN_PID
from contimg.queue.planning import Plan, make_plans
from contimg.runs.session import require_site
from contimg.stages.job import Job, run_job
from contimg.store.files import lock
from contimg.store.staging import make, remove_group, remove_if_empty


def run_stage(config: Config, name: str, group: str, threads: int) -> Path:
    """Run a stage (by its name, or its rule's) of a group that is to be worked on; returns where
    its result is.

    The queue is not touched: the next run goes on from what this leaves. Raises RequestError for a
    stage that the group does not have, or that cannot be run now, LockError while a run is at work,
    ContimgError when the stage fails.
    """
    stage = stage_named(name)
    require_site(config)
    paths = Paths.of(config)
    for variable in (RUN_ID, RUN_PID):  # it is part of no run
        os.environ.pop(variable, None)
    what = "a run is working on this state folder: wait for its end"
    with lock(paths.run_lock("local"), wait=False, what=what):
        plan = make_plans(config, time.time(), [group], alone=True).get(group)
        _require_possible(paths, stage, group, plan)
        staging = paths.staging_roots()["disk"]
        make(staging)
        job = job_of(config, stage, plan, threads, staging)
        failed = run_alone(job)
        if not failed and stage.name == "concat":
            remove_group(staging, group)
            # By this file Snakemake knows when a folder was made, whatever changes in it later.
            (job.ms / ".snakemake_timestamp").touch()
        remove_if_empty(staging)
    if failed:
        raise ContimgError(f"{stage.name} of {group} failed; see {job.logfile}")
    return paths.result(group, stage.name)


def stage_named(name: str) -> Stage:
    """A stage by its name, or its rule's."""
    stage = next((one for one in CHAIN if name in (one.name, one.rule)), None)
    if stage is None:
        raise RequestError(f"{name}: no such stage; there are {', '.join(s.name for s in CHAIN)}")
    return stage


def job_of(config: Config, stage: Stage, plan: Plan, threads: int, staging: Path) -> Job:
    """A stage of a planned group, as Snakemake would start it."""
    paths, group = Paths.of(config), plan.group.id
    return Job(
        stage.name,
        group,
        config,
        paths,
        paths.log(group, stage.rule or stage.name),
        threads,
        plan.group.files,
        (plan.mid_mjd, plan.app_dec_deg),
        staging,
    )


def run_alone(job: Job) -> int:
    """Do a job in a child process; returns its exit code."""
    stage = stage_named(job.stage)
    work = import_module(f"contimg.stages.{stage.rule or stage.name}").run
    child = multiprocessing.get_context("fork").Process(target=run_job, args=(job, work))
    child.start()
    child.join()
    return child.exitcode


def _require_possible(paths: Paths, stage: Stage, group: str, plan: Plan | None) -> None:
    """Raise RequestError unless the group can be worked on, and what the stage needs is there."""
    if plan is None:
        raise RequestError(f"group {group}: no such group in {paths.incoming}, or in the queue")
    if paths.result(group, LAST).exists():
        raise RequestError(
            f"group {group} is completed: first contimg reprocess {group} --from {stage.name}"
        )
    if plan.action != "run":
        raise RequestError(f"group {group} cannot be worked on now: {plan.action}: {plan.reason}")
    if stage.calibrators and not plan.own_set:
        raise RequestError(f"group {group} has no stage {stage.name}: it gives no set of its own")
    of_calibrators = {one.name for one in CHAIN if one.calibrators}
    needed = [s for s in stage.after if plan.own_set or s not in of_calibrators]
    if absent := [s for s in needed if not paths.result(group, s).exists()]:
        raise RequestError(f"group {group}: {stage.name} comes after {' and '.join(absent)}")
