"""Every error that a stage raises on purpose. The message says who, what was expected, what was
found, what to do."""

import errno
import re

_NO_ROOM = re.compile(
    "No space left on device|Disk quota exceeded|database or disk is full", re.IGNORECASE
)


class ContimgError(Exception):
    """Base class: an error whose message is enough for an operator; no traceback is needed to act
    on it."""


class ConfigError(ContimgError):
    """The configuration cannot be used."""


class RequestError(ContimgError):
    """What a user asks for is not there, or cannot be done to it."""


class InputError(ContimgError):
    """The raw data of one group cannot be used; trying again with the same files cannot help."""


class SubbandError(InputError):
    """One subband file is unreadable, truncated or not of this telescope."""


class ValidationError(ContimgError):
    """A Measurement Set or a product is not what its stage promised."""


class ProductError(ContimgError):
    """A result or a product that must be there is not, or cannot be read."""


class CalibrationError(ContimgError):
    """No usable solutions, or no valid set to apply."""


class ImagingError(ContimgError):
    """The image could not be made."""


class StateError(ContimgError):
    """A move that the state machine of the queue does not have."""


class NotNow(ContimgError):
    """Nothing is wrong with the group: it waits, and no attempt is spent."""


class AbsentError(NotNow):
    """A disk, or a folder, is not there: it may come back."""


class StorageError(NotNow):
    """There is no room for what is to be written."""


class NoCalibrationError(NotNow):
    """No calibration set is valid for a group."""


class LockError(ContimgError):
    """Another run holds the lock."""


def is_full(error: BaseException | str) -> bool:
    """Whether an error, or what a library said last, comes from a disk without room, or a quota
    that is used up."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or bool(
        _NO_ROOM.search(str(error))
    )
