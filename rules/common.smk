# What all rules share: the configuration, the plan of this run, helpers for names. File names live in contimg.paths.
import os
import re
import sys
import time
from collections import Counter
from itertools import chain

from snakemake.cli import get_argument_parser
from snakemake.logging import logger
from sqlalchemy.exc import SQLAlchemyError

from contimg import paths as names
from contimg.config import from_mapping
from contimg.errors import ContimgError
from contimg.processes import CLUSTER_NODE, RUN_ID, announce_run
from contimg.queue.moves import is_converted
from contimg.queue.planning import make_plans, raw_bytes, targets
from contimg.runs import run as contimg_run
from contimg.runs import session, slurm
from contimg.store import staging

try:
    CONFIG = from_mapping(config)
    PATHS = names.Paths.of(CONFIG)
    SNAPSHOT = None if workflow.is_main_process else session.snapshot_of_run(PATHS)
    # A cluster's profile has `jobs` and no `cores`, for which a dry-run has 1; no executor is known yet.
    SIZE = workflow.resource_settings
    ELSEWHERE = SIZE.cores is None or (SIZE.cores == 1 and SIZE.nodes is not None)
    LANE = names.LANES[ELSEWHERE]
    # Groups named on the command line: by a target, or by a product that is one. A folder may have such a name, too.
    GIVEN = (
        get_argument_parser().parse_known_args(sys.argv[1:])[0].targets
        if workflow.is_main_process
        else ()
    )
    WORDS = [str(word).removeprefix(f"{PATHS.products}/") for word in GIVEN or ()]
    ASKED = set(re.findall(names.GROUP_PATTERN, " ".join(WORDS)))
    PLANS = SNAPSHOT[0] if SNAPSHOT else make_plans(CONFIG, time.time(), ASKED, LANE)
    TARGETS = (
        {} if SNAPSHOT else targets(WORDS, PLANS)
    )  # and all those of a day or a calibrator named there
    if more := set(chain(*TARGETS.values())) - ASKED:
        ASKED |= more
        PLANS = make_plans(CONFIG, time.time(), ASKED, LANE)
except ContimgError as error:
    raise WorkflowError(str(error)) from None

announce_run()
CORES = SIZE.cores or 1
if workflow.remote_exec:
    os.environ[CLUSTER_NODE] = "1"
    if not SNAPSHOT:
        raise WorkflowError(
            f"no plan of run {os.environ.get(RUN_ID)} in {PATHS.state}: is it shared with this node?"
        )
if SNAPSHOT:
    STAGING = SNAPSHOT[1]
else:
    STAGING = staging.choose_root(
        CONFIG, raw_bytes(PLANS), CORES, workflow.storage_settings.notemp, ELSEWHERE
    )


wildcard_constraints:
    group=names.GROUP_PATTERN,
    date=names.DATE_PATTERN,


def result(group, stage):
    return str(PATHS.result(group, stage))


def ms_path(group):
    return str(PATHS.ms(group))


def logs(stage):
    return str(PATHS.log("{group}", stage))


def groups_to_run():
    order = sorted(
        (g for g, plan in PLANS.items() if plan.action == "run"),
        reverse=CONFIG.ingest.order == "newest",
    )
    return sorted(order, key=lambda g: not PLANS[g].calibrators)


# Priorities rise along a group's chain: a group is finished before the next one is begun.


def imaged(groups):
    """Results of those that are imaged, or can be."""
    return [result(group, "index") for group in groups if PLANS[group].action in ("run", "done")]


def done_on(wildcards):
    return imaged(group for group in PLANS if group[:10] == wildcards.date)


def plan_of(wildcards):
    if wildcards.group not in PLANS:
        raise WorkflowError(
            f"group {wildcards.group} has no files in {PATHS.incoming}; see `contimg plan`"
        )
    plan = PLANS[wildcards.group]
    if plan.calset is None:
        raise WorkflowError(f"group {wildcards.group} cannot be imaged now: {plan.reason}")
    return plan


# On a cluster (local runs do not group jobs) a target is one job; a calibrator group is two, with its registration between.
def after_calibration(wildcards):
    return "from_apply" if plan_of(wildcards).own_set else "whole"


def memory_mb(base):
    """More of it at each attempt that the queue counted, and at each of Snakemake's own."""
    return lambda wildcards, attempt: base * (attempt + plan_of(wildcards).attempts)


def raw_files(wildcards):
    """The plan knows whether they changed: they are ancient(). Snakemake refuses outputs older than their inputs, though some
    files are dated in the future: the script gets those from the plan all the same."""
    now = time.time()
    needed = not is_converted(PATHS, wildcards.group)
    return [
        path
        for path in every_raw_file(wildcards)
        if (os.path.getmtime(path) < now if os.path.exists(path) else needed)
    ]


def every_raw_file(wildcards):
    return [str(path) for _, path in sorted(plan_of(wildcards).group.files.items())]


def calibration_first(wildcards):
    """A target chooses its calibration before anything is done with its data; a calibrator group cannot."""
    if plan_of(wildcards).own_set or is_converted(PATHS, wildcards.group):
        return []
    return [chosen_set(wildcards)]


def chosen_set(wildcards):
    return standing(wildcards.group, "caltables")


def standing(group, stage):
    """A result that, being newer, repeats nothing. Not where its group does something again: Snakemake 9.27 takes all that
    follows from such a job as seen to, and by way of an ancient() file that is there goes no further.
    """
    plan = PLANS.get(group)
    return result(group, stage) if plan and plan.redo else ancient(result(group, stage))


def own_registration(wildcards):
    """A group that gets its own set chooses it when it is registered, and again when it is solved again."""
    return [result(wildcards.group, "register")] if plan_of(wildcards).own_set else []


def registered_first(wildcards):
    """A set that is solved in this run is registered before another group chooses it."""
    plan = plan_of(wildcards)
    return (
        [standing(plan.depends_on, "register")]
        if plan.depends_on not in (None, wildcards.group)
        else []
    )


def again(stage):
    """An input that is newer than the result, for stages to be done again though they have one."""

    def newer(wildcards):
        plan = PLANS.get(wildcards.group)
        return [str(PATHS.again)] if plan and stage in plan.redo else []

    return newer


def say_what_is_left_out():
    for plan in PLANS.values():
        if plan.action in ("running", "waiting", "collecting", "failed"):
            logger.info(f"not in this run: {plan.group.id} {plan.action}: {plan.reason}")


def summary():
    """The plan in one line: the last message of a run, and the only one when there is nothing to do."""
    counts = Counter(plan.action for plan in PLANS.values())
    rest = [f"{n} {action}" for action, n in sorted(counts.items()) if action != "run"]
    begin = f"{counts['run']} groups imaged" if counts["run"] else "Nothing to be done"
    return "; ".join([begin, *rest]) + ". `contimg plan` says why, `contimg status` what came out."


if workflow.is_main_process:
    say_what_is_left_out()
    if any(plan.redo for plan in PLANS.values()):
        PATHS.again.parent.mkdir(exist_ok=True)
        PATHS.again.write_text(
            f"{time.time_ns()}\n"
        )  # of one content it would be the same file to Snakemake, however new


onstart:
    if workflow.touch:
        logger.error(
            "--touch would make stages done that are not: nothing was begun. contimg reprocess says what to do again"
        )
        sys.exit(1)
    if workflow.local_exec == ELSEWHERE:
        logger.error(
            "--cores (and no --jobs) is for one machine, --jobs (and no --cores) for a cluster: nothing was begun"
        )
        sys.exit(1)
    if ELSEWHERE:
        try:
            slurm.prepare(PATHS, workflow.scheduler._executor)
        except ContimgError as error:
            logger.error(f"{type(error).__name__}: {error}")
            sys.exit(session.refused(CONFIG, error))
    todo = {}
    for job in workflow.dag.needrun_jobs():
        if "group" in job.wildcards_dict:
            todo.setdefault(job.wildcards_dict["group"], []).append(job.rule.name)
    contimg_run.current = contimg_run.Run(
        CONFIG, PLANS, STAGING, todo, ASKED, logger.info, CORES, ELSEWHERE
    )
    try:
        contimg_run.current.begin()
    except (ContimgError, OSError, SQLAlchemyError) as error:
        logger.error(f"{type(error).__name__}: {error}")
        sys.exit(session.refused(CONFIG, error))


onsuccess:
    contimg_run.current.end()


onerror:
    if contimg_run.current is not None:
        contimg_run.current.end()
