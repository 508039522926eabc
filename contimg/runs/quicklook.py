"""A quick image of a group in whatever state it is, finished ones too, beside what it has.

Nothing of the group is touched: what its stages would write goes into a folder of its own, which is
removed. Where its data are calibrated they are imaged as they lie there; else the stages before are
done for the quick look alone.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import psutil

from contimg.calibration.registry import active_sets, choose_set
from contimg.config import Config
from contimg.errors import ContimgError, LockError, RequestError
from contimg.paths import CHANGING_MARK, Paths
from contimg.plots.image import draw_image
from contimg.plots.style import coarse_image, save_plot
from contimg.queue.planning import Plan, make_plans
from contimg.runs.by_hand import job_of, run_alone, stage_named
from contimg.runs.session import require_site
from contimg.store.files import found_json, lock, read_json, remove, replacing

_CALIBRATED = ("convert", "caltables", "apply", "refine")  # what the image stage wants to know


def quicklook(
    config: Config, group: str, threads: int, say: Callable[[str], None] = print
) -> tuple[dict, Path, Path]:
    """Image a group quickly; returns the image stage's result, the FITS image and its picture.

    Raises RequestError where there is no such group, or neither calibrated nor raw data of it;
    ContimgError when a stage fails, without a calibration set, too.
    """
    require_site(config)
    paths = Paths.of(config)
    plan = make_plans(config, time.time(), [group]).get(group)
    if plan is None:
        raise RequestError(f"group {group}: no such group in {paths.incoming}, or in the queue")
    with ExitStack() as stack:
        apart = _apart(config, stack)
        stages = ["image"] if _calibrated(paths, group, stack) else _from_raw(config, plan)
        scratch = Paths.of(apart)
        if stages == ["image"]:
            scratch.result(group, "image").parent.mkdir(parents=True)
            for name in _CALIBRATED:
                shutil.copyfile(paths.result(group, name), scratch.result(group, name))
            scratch.ms(group).parent.mkdir(parents=True)
            scratch.ms(group).symlink_to(paths.ms(group).absolute())
        for name in stages:
            if len(stages) > 1:
                say(f"{group}: {name} ...")
            _run(apart, name, plan, threads)
        imaged = read_json(scratch.result(group, "image"))
        image, picture = paths.quicklook(group, "fits"), paths.quicklook(group, "png")
        with replacing(image) as beside:
            shutil.copyfile(imaged["images"]["pbcor.fits"], beside)
        title = f"quick look at {group}"
        shown = coarse_image(Path(imaged["images"]["image.pbcor"]))
        if why := save_plot(lambda: draw_image(shown, imaged, title), picture):
            raise ContimgError(f"{picture}: {why}")
    return imaged, image, picture


def _apart(config: Config, stack: ExitStack) -> Config:
    """The configuration with folders of its own, which go in the end; those of one that was killed
    go now. The registry is a copy."""
    paths = Paths.of(config)
    paths.products.mkdir(parents=True, exist_ok=True)
    for left in paths.products.glob(".quicklook.*"):
        if not psutil.pid_exists(int(left.name.split(".")[2])):
            remove(left)
    folder = Path(mkdtemp(dir=paths.products, prefix=f".quicklook.{os.getpid()}."))
    stack.callback(shutil.rmtree, folder)
    folders = {"products": folder / "products", "state": folder / "state", "databases": None}
    (folder / "state").mkdir()
    apart = config.model_copy(
        update={
            "paths": config.paths.model_copy(update=folders),
            "imaging": config.imaging.model_copy(update={"mode": "quick", "skip_fits": False}),
        }
    )
    if paths.registry_db.exists():
        with (
            closing(sqlite3.connect(f"file:{paths.registry_db}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(Paths.of(apart).registry_db)) as copy,
        ):
            source.backup(copy)
    return apart


def _calibrated(paths: Paths, group: str, stack: ExitStack) -> bool:
    """Whether the group's Measurement Set has calibrated data, and nobody is working on it, or will
    before this ends."""
    if not all(found_json(paths.result(group, name)) for name in _CALIBRATED):
        return False
    try:
        stack.enter_context(lock(paths.group_lock(group), wait=False, what=f"group {group}"))
    except LockError:
        return False
    ms = paths.ms(group)
    return ms.is_dir() and not (ms / CHANGING_MARK).exists()


def _from_raw(config: Config, plan: Plan) -> list[str]:
    """The stages from raw files to a quick image: with a solution of its own where the group is a
    calibrator without a set."""
    if not all(path.exists() for path in plan.group.files.values()) or not plan.group.files:
        raise RequestError(
            f"group {plan.group.id}: its raw files are gone, and its Measurement Set is not there, "
            "not calibrated, or being worked on"
        )
    stages = ["convert", "concat", "prepare", "caltables", "apply", "image"]
    if plan.calibrators and plan.mid_mjd is not None:
        sets = active_sets(Paths.of(config).registry_db)
        if choose_set(sets, plan.mid_mjd, plan.app_dec_deg, config.calibration).chosen is None:
            stages[3:3] = ["solve", "register"]
    return stages


def _run(config: Config, name: str, plan: Plan, threads: int) -> None:
    """A stage of the quick look; raises ContimgError with what a failed one said."""
    paths, group = Paths.of(config), plan.group.id
    if converted := found_json(paths.result(group, "convert")):
        at = {key: converted[key] for key in ("mid_mjd", "app_dec_deg")}
        plan = replace(plan, **at)
    staging = paths.state / "staging"
    staging.mkdir(exist_ok=True)
    if run_alone(job_of(config, stage_named(name), plan, threads, staging)):
        said = found_json(paths.error(group)) or {}
        raise ContimgError(f"{name} of {group}: {said.get('error', 'ended without a word')}")
