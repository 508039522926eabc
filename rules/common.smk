# What all rules share: the configuration, the plan of this run, helpers for names. File names live in contimg.paths.
import re
import sys
import time
from collections import Counter

from snakemake.logging import logger

from contimg import paths as names
from contimg import run as contimg_run
from contimg import staging
from contimg.config import from_mapping
from contimg.errors import ContimgError
from contimg.planning import make_plans
from contimg.stage import announce_run

try:
    CONFIG = from_mapping(config)
    PATHS = names.Paths.of(CONFIG)
    ASKED = set(re.findall(names.GROUP_PATTERN, " ".join(sys.argv[1:])))  # groups named on the command line
    PLANS = make_plans(CONFIG, time.time(), ASKED)
    DAYS = set(re.findall(names.DAY_TARGET, " ".join(sys.argv[1:])))  # and all groups of the days named there
    if of_days := {group for group in PLANS if group[:10] in DAYS}:
        ASKED |= of_days
        PLANS = make_plans(CONFIG, time.time(), ASKED)
except ContimgError as error:
    raise WorkflowError(str(error)) from None

announce_run()
STAGING = staging.choose(CONFIG, PLANS, workflow.cores or 1, workflow.storage_settings.notemp)


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
    order = sorted((g for g, plan in PLANS.items() if plan.action == "run"), reverse=CONFIG.ingest.order == "newest")
    return sorted(order, key=lambda g: not PLANS[g].calibrators)


# Priorities rise along a group's chain: a group is finished before the next one is begun.


def done_on(wildcards):
    """Results of all groups of a day that are imaged, or can be."""
    fit = (group for group, plan in PLANS.items() if group[:10] == wildcards.date and plan.action in ("run", "done"))
    return [result(group, "index") for group in fit]


def plan_of(wildcards):
    if wildcards.group not in PLANS:
        raise WorkflowError(f"group {wildcards.group} has no files in {PATHS.incoming}; see `contimg plan`")
    plan = PLANS[wildcards.group]
    if plan.calset is None:
        raise WorkflowError(f"group {wildcards.group} cannot be imaged now: {plan.reason}")
    return plan


def raw_files(wildcards):
    return [str(path) for _, path in sorted(plan_of(wildcards).group.files.items())]


def calibration_first(wildcards):
    """A target chooses its calibration before anything is done with its data; a calibrator group cannot."""
    if plan_of(wildcards).own_set:
        return []
    return [result(wildcards.group, "caltables")]


def own_registration(wildcards):
    """A group that gets its own set chooses it when it is registered, and again when it is solved again."""
    return [result(wildcards.group, "register")] if plan_of(wildcards).own_set else []


def registered_first(wildcards):
    """A set that is solved in this run is registered before another group chooses it."""
    plan = plan_of(wildcards)
    return [result(plan.depends_on, "register")] if plan.depends_on not in (None, wildcards.group) else []


def say_what_is_left_out():
    for plan in PLANS.values():
        if plan.action in ("waiting", "collecting", "failed"):
            logger.info(f"not in this run: {plan.group.id} {plan.action}: {plan.reason}")


def summary():
    """The plan in one line: the last message of a run, and the only one when there is nothing to do."""
    counts = Counter(plan.action for plan in PLANS.values())
    rest = [f"{n} {action}" for action, n in sorted(counts.items()) if action != "run"]
    begin = f"{counts['run']} groups imaged" if counts["run"] else "Nothing to be done"
    return "; ".join([begin, *rest]) + ". `contimg plan` says why, `contimg status` what came out."


if workflow.is_main_process:
    say_what_is_left_out()


onstart:
    contimg_run.current = contimg_run.Run(CONFIG, PLANS, STAGING, ASKED, logger.info, workflow.cores or 1)
    try:
        contimg_run.current.begin()
    except ContimgError as error:
        logger.error(f"{type(error).__name__}: {error}")
        sys.exit(contimg_run.NOT_NOW)


onsuccess:
    contimg_run.current.end()


onerror:
    if contimg_run.current is not None:
        contimg_run.current.end()
