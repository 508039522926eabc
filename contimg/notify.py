"""Messages on what is wrong and what is new: once a cause, with what mends it, and when it is over.

What was told is in `{state}/told.json`. A message that nobody took is tried again at the next look.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from apprise import Apprise, AppriseConfig
from sqlalchemy.exc import SQLAlchemyError

from contimg import concerns
from contimg.concerns import FAIL, Concern
from contimg.config import Config
from contimg.errors import ConfigError, ContimgError
from contimg.paths import Paths
from contimg.products.catalogue import SAME_ARCSEC
from contimg.sky.geometry import separation_deg
from contimg.store.files import found_json, lock, write_json

log = logging.getLogger(__name__)
LOOK_EVERY_S = 60.0
_LINES = 20  # of a message

Send = Callable[[str, str], bool]  # title and body; whether all took it


def news(
    seen: list[Concern], told: Mapping[str, Mapping], now_s: float, calm_s: float
) -> tuple[list[Concern], list[str], dict[str, dict]]:
    """What was not told yet, keys of what is over, and what is told once these are.

    told  by key: words, when it was first and last seen, place (a candidate's does not end)
    """
    places = [one["place_deg"] for one in told.values() if one["place_deg"]]
    fresh = [one for one in seen if one.key not in told and not _near(one, places)]
    present = {one.key for one in seen}
    then = {
        key: {**one, "last_s": now_s if key in present else one["last_s"]}
        for key, one in told.items()
    }
    over = [
        key
        for key, one in then.items()
        if key not in present and not one["place_deg"] and now_s - one["last_s"] >= calm_s
    ]
    for one in fresh:
        times = {"first_s": now_s, "last_s": now_s}
        then[one.key] = {"words": one.words, "place_deg": one.place_deg, **times}
    return fresh, over, then


def _near(concern: Concern, places_deg: list) -> bool:
    """Whether a candidate was told under another name: its place moves with what is measured."""
    return concern.place_deg is not None and any(
        3600 * separation_deg(*concern.place_deg, *place) < SAME_ARCSEC for place in places_deg
    )


def sender(file: Path) -> Send:
    """Sends to all addresses of a file; raises ConfigError when there are none."""
    if not file.is_file():
        raise ConfigError(f"notify.file {file}: there is no such file")
    if file.stat().st_mode & 0o077:
        raise ConfigError(f"notify.file {file}: others can read it: chmod 600 {file}")
    addresses = AppriseConfig()
    addresses.add(str(file))
    apprise = Apprise()
    apprise.add(addresses)
    if not len(apprise):
        raise ConfigError(f"notify.file {file}: no address that apprise understands")
    return lambda title, body: bool(apprise.notify(title=title, body=body))


def tell(config: Config, send: Send, now_s: float | None = None) -> list[str]:
    """Look once, and send what there is to be said; returns the titles of what was sent."""
    now_s = time.time() if now_s is None else now_s
    paths, sent = Paths.of(config), []
    with lock(paths.told_lock, wait=True, what="another process sends messages"):
        told = found_json(paths.told) or {}
        fresh, over, then = news(
            concerns.look(config), told, now_s, 60 * config.notify.calm_minutes
        )
        for what, mine in (
            ("wrong", [one for one in fresh if one.place_deg is None]),
            ("new in the sky", [one for one in fresh if one.place_deg is not None]),
        ):
            grave = ", grave" * any(one.level == FAIL for one in mine)
            lines = [f"{one.words}\n  {one.mend}" for one in mine]
            if mine and not _sent(send, f"contimg: {len(mine)} {what}{grave}", lines, sent):
                for one in mine:  # again at the next look
                    del then[one.key]
        lines = [f"{told[key]['words']}\n  was so for {_time(told[key])}" for key in over]
        if over and _sent(send, f"contimg: {len(over)} over", lines, sent):
            for key in over:
                del then[key]
        if then != told:
            write_json(paths.told, then)
    return sent


def _time(told: Mapping) -> str:
    return concerns.duration(told["last_s"] - told["first_s"])


def _sent(send: Send, title: str, lines: list[str], sent: list[str]) -> bool:
    more = [f"and {len(lines) - _LINES} more"] if len(lines) > _LINES else []
    if not send(title, "\n".join(lines[:_LINES] + more)):
        log.error("message not delivered, tried again in a minute: %s", title)
        return False
    sent.append(title)
    return True


def start(config: Config) -> None:
    """Look every minute from now on, in a thread; nothing if nobody is to be told. Raises
    ConfigError before it begins."""
    if config.notify.file is not None:
        work = partial(_keep_telling, config, sender(config.notify.file))
        threading.Thread(target=work, daemon=True, name="notify").start()


def _keep_telling(config: Config, send: Send) -> None:
    problem = None
    while True:
        time.sleep(LOOK_EVERY_S)
        try:
            tell(config, send)
            problem = None
        except (OSError, SQLAlchemyError, ContimgError) as error:  # as in the watcher
            if str(error) != problem:
                log.error("no messages: %s", error)
            problem = str(error)
