"""The present."""

from datetime import UTC, datetime


def now() -> str:
    """The present, as it is written into results and databases: UTC in ISO format, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
