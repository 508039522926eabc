"""Snakemake logger plugin: job events become rows of the queue (contimg.runs.run). It cannot break
a run."""

import logging

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from contimg.runs import run

log = logging.getLogger("contimg.plugin")


class LogHandler(LogHandlerBase):
    """Follows jobs by their ids; does nothing until the run has begun (never, in a dry-run)."""

    def __post_init__(self) -> None:
        self._jobs: dict[int, tuple[str, str]] = {}  # job id: (group, rule)
        self._complained = False

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one event; whatever goes wrong is said once and never raised."""
        try:
            self._handle(record)
        except Exception as error:  # a full disk must not stop the science
            if not self._complained:
                self._complained = True
                log.warning("the queue could not be updated: %s: %s", type(error).__name__, error)

    def _handle(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO and run.current is not None:
            group = (record.wildcards or {}).get("group")
            if group:
                self._jobs[record.jobid] = (group, record.rule_name)
                run.current.job_started(group, record.rule_name)
        elif event == LogEvent.JOB_FINISHED and record.job_id in self._jobs:
            run.current.job_finished(*self._jobs.pop(record.job_id))
        elif event == LogEvent.JOB_ERROR and record.jobid in self._jobs:
            run.current.job_failed(*self._jobs.pop(record.jobid))

    @property
    def writes_to_stream(self) -> bool:
        """Snakemake's own handler goes on writing to the terminal."""
        return False

    @property
    def writes_to_file(self) -> bool:
        """The queue is no log file."""
        return False

    @property
    def has_filter(self) -> bool:
        """Sees every event."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Formats nothing."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """Follows jobs, not rules."""
        return False
