"""The stage `convert`: raw subband files to subband Measurement Sets in staging."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from contimg.config import Config
from contimg.errors import InputError, ValidationError
from contimg.findings import Finding
from contimg.processes import CLUSTER_NODE
from contimg.stages.job import Job, log
from contimg.store.files import checksum
from contimg.store.staging import make, require_room, sweep
from contimg.telescope import TELESCOPE
from contimg.visibilities.conversion import GroupPlan, convert_parallel, plan_group
from contimg.visibilities.uvh5 import changed_since, content_mark

_ODD_ZEROS = 0.01


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    if CLUSTER_NODE in os.environ:
        make(job.staging)
        sweep(job.paths, job.staging, job.group)
    raw_bytes = sum(path.stat().st_size for path in job.files.values())
    needs = [(job.staging, raw_bytes), (job.ms.parent, 2 * raw_bytes)]
    require_room(needs, f"group {job.group}")
    return convert_group(job.files, job.staged, job.config, job.threads, log.info)


def convert_group(
    files: Mapping[int, Path],
    outputs: Sequence[Path],
    config: Config,
    workers: int,
    progress: Callable[[str], None] = lambda message: None,
) -> dict:
    """Write the Measurement Sets of subbands 0, 1, ... to `outputs`; those without a file get no
    rows. The pyuvdata writer makes a single one, with the channels of all.

    Returns the result recorded in `{group}.convert.json`. Raises SubbandError naming the file that
    is at fault, InputError when all data are zero.
    """
    begin = time.perf_counter()
    expected = config.ingest.expected_subbands
    seen = {str(path): content_mark(path) for _, path in sorted(files.items())}
    plan = plan_group(files, expected, config.conversion.telescope_name or TELESCOPE.casa_name)
    header_s = time.perf_counter() - begin
    if config.writer == "pyuvdata":
        from contimg.visibilities import pyuvdata_writer

        sums = pyuvdata_writer.convert(plan, outputs[0])
    else:
        sums = convert_parallel(plan, outputs, workers, progress)
    with ThreadPoolExecutor(workers) as pool:  # while the files are still in the page cache
        sha256 = dict(
            zip(
                map(str, sorted(files)),
                pool.map(checksum, (files[sb] for sb in sorted(files))),
                strict=True,
            )
        )
    if changed := changed_since(seen):
        raise ValidationError(
            f"{', '.join(changed)}: written to while being read. The group is converted again."
        )
    start_mjd, end_mjd = plan.observation.time_range_mjd
    nonzero = sums.pop("nonzero")
    if not any(nonzero.values()):
        raise InputError(
            f"{plan.reference.path} and its group: every visibility is zero, or has no samples. "
            "The correlator wrote no data: nothing to image."
        )
    return {
        "writer": config.writer,
        "subbands": sorted(files),
        "missing_subbands": sorted(set(range(expected)) - set(files)),
        "short_subbands": plan.short,
        "files": {str(sb): str(path) for sb, path in sorted(files.items())},
        "sha256": sha256,
        "seen": seen,
        "findings": [one.as_json() for one in _odd_zeros(plan, nonzero)],
        "start_mjd": float(start_mjd),
        "mid_mjd": plan.reference.mid_mjd,
        "end_mjd": float(end_mjd),
        "app_dec_deg": float(np.degrees(plan.reference.app_dec_rad)),
        "phase_centre_deg": list(plan.observation.phase_centre_deg),
        "shape": [*plan.rows.shape, len(plan.reference.freq_hz), 2],
        "load_s": header_s + sums["load_s"],
        "phase_s": sums["phase_s"],
        "write_s": sums["write_s"],
    }


def _odd_zeros(plan: GroupPlan, nonzero: Mapping[int, int]) -> list[Finding]:
    """Subbands of whose visibilities a larger share is zero than of those of all others."""
    nbaseline = plan.rows.shape[1]
    cells = {
        sb: len(plan.headers[sb].time_mjd) * nbaseline * len(plan.reference.freq_hz) * 2
        for sb in nonzero
    }
    share = {sb: 1 - nonzero[sb] / cells[sb] for sb in sorted(nonzero)}
    usual = float(np.median(list(share.values())))
    return [
        Finding(
            "zeros",
            "warn",
            f"{plan.headers[sb].path.name}: {100 * zeros:.0f} % of the visibilities are zero, of "
            f"the other subbands' {100 * usual:.0f} %: a copy that stalled, or a node that "
            "stopped writing; they are flagged. If the whole file is elsewhere: copy it again, "
            "then contimg reprocess GROUP",
            zeros,
            usual + _ODD_ZEROS,
        )
        for sb, zeros in share.items()
        if zeros > usual + _ODD_ZEROS
    ]
