# What all rules share: names, and functions for their inputs. What a run does is decided in
# contimg/runs/session.py, what files are called in contimg/paths.py.
import sys

from snakemake.logging import logger
from sqlalchemy.exc import SQLAlchemyError

from contimg import paths as names
from contimg.errors import ContimgError
from contimg.runs import run as contimg_run
from contimg.runs import slurm
from contimg.runs.session import open_session, refused

try:
    SESSION = open_session(
        config,
        sys.argv[1:],
        decides=workflow.is_main_process,
        cores=workflow.resource_settings.cores,
        nodes=workflow.resource_settings.nodes,
        keep_staged=workflow.storage_settings.notemp,
        on_node=workflow.remote_exec,
    )
except ContimgError as error:
    raise WorkflowError(str(error)) from None

CONFIG, PATHS = SESSION.config, SESSION.paths
contimg_run.lend_library(workflow.current_basedir)


wildcard_constraints:
    group=names.GROUP_PATTERN,
    date=names.DATE_PATTERN,
    tract=names.TRACT_PATTERN,
    sday=names.SDAY_PATTERN,
    mosaic=names.MOSAIC_PATTERN,


def result(group, stage):
    return str(PATHS.result(group, stage))


def ms_path(group):
    return str(PATHS.ms(group))


def logs(rule):
    return str(PATHS.log("{group}", rule))


# Priorities rise along a group's chain: a group is finished before the next one is begun.


def imaged(groups):
    return [result(group, "index") for group in SESSION.imaged(groups)]


def tracts(target):
    """Results of what a target has of mosaics: what is new on its days, lists of sources, maps."""
    pieces = [name for name in SESSION.of_target.get(target, ()) if not SESSION.pieces[name].frozen]
    lists = set(pieces) if "day" in CONFIG.mosaics.catalogues else set()
    if "deep" in CONFIG.mosaics.catalogues:
        lists |= {SESSION.pieces[name].tract for name in pieces}
    maps = set(pieces) if "day" in CONFIG.mosaics.hips else set()
    if "deep" in CONFIG.mosaics.hips:
        maps |= {SESSION.pieces[name].tract for name in pieces}
    of_days = [result(name, "difference") for name in pieces]
    of_days += [result(name, "hips") for name in sorted(maps)]
    return of_days + [result(name, "catalogue") for name in sorted(lists)]


def mosaic_of(wildcards):
    name = wildcards.mosaic
    return result(name, "mosaic" if "." in name.partition("_")[2] else "deep")


def piece_of(wildcards):
    return SESSION.piece_of(wildcards.tract, wildcards.sday)


def piece_json(wildcards):
    return piece_of(wildcards).as_json()


def tiles_to_come(wildcards):
    return [result(group, "index") for group in piece_of(wildcards).to_come]


def piece_again(wildcards):
    return [str(PATHS.again)] if piece_of(wildcards).again else []


def days_of_tract(wildcards):
    tract = wildcards.tract
    return [result(f"{tract}.{day}", "mosaic") for day in SESSION.days_of(tract)]


def all_days(wildcards):
    """The deep image grows with every day: that alone is no reason to compare a day again, unless
    there was no other."""
    path = result(wildcards.tract, "deep")
    return path if piece_of(wildcards).alone else ancient(path)


def done_on(wildcards):
    return imaged(group for group in SESSION.plans if group[:10] == wildcards.date)


def plan_of(wildcards):
    try:
        return SESSION.plan_of(wildcards.group)
    except ContimgError as error:
        raise WorkflowError(str(error)) from None


# On a cluster (local runs do not group jobs) a target is one job; a calibrator group is two, with
# its registration between.
def after_calibration(wildcards):
    return "from_apply" if plan_of(wildcards).own_set else "whole"


def memory_mb(base):
    """More of it at each attempt that the queue counted, and at each of Snakemake's own."""
    return lambda wildcards, attempt: base * (attempt + plan_of(wildcards).attempts)


def raw_files(wildcards):
    """The plan knows whether they changed: they are ancient()."""
    plan_of(wildcards)
    return [str(path) for path in SESSION.raw_inputs(wildcards.group)]


def every_raw_file(wildcards):
    return {sb: str(path) for sb, path in plan_of(wildcards).group.files.items()}


def pointing(wildcards):
    plan = plan_of(wildcards)
    return plan.mid_mjd, plan.app_dec_deg


def calibration_first(wildcards):
    plan_of(wildcards)
    return [chosen_set(wildcards)] if SESSION.chooses_first(wildcards.group) else []


def chosen_set(wildcards):
    return standing(wildcards.group, "caltables")


def standing(group, stage):
    """A result that, being newer, repeats nothing. Not where its group does something again:
    Snakemake 9.27 takes all that follows from such a job as seen to, and by way of an ancient()
    file that is there goes no further."""
    path = result(group, stage)
    return path if SESSION.is_redone(group) else ancient(path)


def own_registration(wildcards):
    """A group that gets its own set chooses it when it is registered, and again when it is solved
    again."""
    return [result(wildcards.group, "register")] if plan_of(wildcards).own_set else []


def registered_first(wildcards):
    """Sets that are solved in this run are registered before another group chooses them."""
    plan_of(wildcards)
    return [standing(other, "register") for other in SESSION.waits_for(wildcards.group)]


def again(stage):
    """An input that is newer than the result, for stages to be done again though they have one."""
    return lambda wildcards: (
        [str(PATHS.again)] if SESSION.is_redone(wildcards.group, stage) else []
    )


if SESSION.decides:
    for line in SESSION.left_out():
        logger.info(line)


onstart:
    if words := SESSION.misused(touch=workflow.touch, local=workflow.local_exec):
        logger.error(words)
        sys.exit(1)
    jobs = {}
    for job in workflow.dag.needrun_jobs():
        if "group" in job.wildcards_dict:
            jobs.setdefault(job.wildcards_dict["group"], []).append(job.rule.name)
    try:
        of_slurm = slurm.prepare(workflow.scheduler._executor) if SESSION.on_cluster else ""
        contimg_run.current = contimg_run.Run(SESSION, jobs, logger.info, of_slurm)
        contimg_run.current.begin()
    except (ContimgError, OSError, SQLAlchemyError) as error:
        logger.error(f"{type(error).__name__}: {error}")
        sys.exit(refused(CONFIG, error))


onsuccess:
    contimg_run.current.end()


onerror:
    if contimg_run.current is not None:
        contimg_run.current.end()
