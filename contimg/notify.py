"""Messages on what is wrong and what is new: once a cause, with what mends it, and when it is over.

What was told is in `{state}/told.json`. A message that nobody took is tried again at the next look.
"""

import logging
import platform
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from apprise import Apprise, AppriseConfig

from contimg import concerns
from contimg.concerns import FAIL, WARN, Concern
from contimg.config import Config
from contimg.errors import ConfigError
from contimg.paths import Paths
from contimg.products.catalogue import SAME_ARCSEC
from contimg.sky.geometry import separation_deg
from contimg.store.files import found_json, lock, write_json

log = logging.getLogger(__name__)
LOOK_EVERY_S = 60.0
_LINES, _TITLE = 20, 120  # of a message
_KINDS = {FAIL: "failure", WARN: "warning"}

Send = Callable[[str, str, str], bool]  # title, body, kind of apprise; whether all took it


def news(
    seen: list[Concern], told: Mapping[str, Mapping], now_s: float, calm_s: float
) -> tuple[list[Concern], list[str], dict[str, dict]]:
    """What was not told yet, keys of what is over, and what is told once these are.

    told  by key: words, when it was first and last seen, place, whether it ends
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
        if key not in present and one["ends"] and now_s - one["last_s"] >= calm_s
    ]
    for one in fresh:
        times = {"first_s": now_s, "last_s": now_s}
        then[one.key] = {"words": one.words, "place_deg": one.place_deg, "ends": one.ends, **times}
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

    def send(title: str, body: str, kind: str) -> bool:
        about = {"notify_type": kind, "body_format": "text"}
        return bool(apprise.notify(title=title, body=body, **about))

    return send


@dataclass(frozen=True)
class _Message:
    """Keys of what is told as new, or, with `over`, as ended."""

    kind: str  # of apprise
    title: str
    lines: list[str]
    keys: list[str]
    over: bool = False


def tell(config: Config, send: Send, now_s: float | None = None) -> tuple[list[str], bool]:
    """Look once, and send what there is to be said; returns the titles of what was sent, and
    whether all was."""
    now_s = time.time() if now_s is None else now_s
    paths, sent = Paths.of(config), []
    with lock(paths.told_lock, wait=True, what="another process sends messages"):
        told = found_json(paths.told) or {}
        seen = concerns.look(config)
        fresh, over, then = news(seen, told, now_s, 60 * config.notify.calm_minutes)
        messages = _messages(fresh, {key: told[key] for key in over})
        for one in messages:
            more = [f"and {len(one.lines) - _LINES} more"] if len(one.lines) > _LINES else []
            arrived = send(one.title, "\n".join(one.lines[:_LINES] + more), one.kind)
            if arrived:
                sent.append(one.title)
            else:
                log.error("not delivered, tried again at the next look: %s", one.title)
            if arrived == one.over:  # told at last that it is over; or not told that it began
                for key in one.keys:
                    del then[key]
        if then != told:
            write_json(paths.told, then)
    return sent, len(sent) == len(messages)


def _messages(fresh: list[Concern], over: Mapping[str, Mapping]) -> list[_Message]:
    """What is wrong, what is new in the sky, what is over: a message each."""
    found = []
    for what, mine in (
        ("wrong", [one for one in fresh if one.place_deg is None]),
        ("new in the sky", [one for one in fresh if one.place_deg is not None]),
    ):
        if mine:
            kind = "info" if mine[0].place_deg else _KINDS[mine[0].level]
            grave = ["grave: " * (one.level == FAIL and len(mine) > 1) for one in mine]
            lines = [
                f"{mark}{one.words}\n  {one.mend}" for mark, one in zip(grave, mine, strict=True)
            ]
            title = _title(what, [one.words for one in mine])
            found.append(_Message(kind, title, lines, [one.key for one in mine]))
    if over:
        lines = [f"it was: {one['words']}\n  for {_time(one)}" for one in over.values()]
        title = _title("over", [f"over: {one['words']}" for one in over.values()])
        found.append(_Message("success", title, lines, list(over), over=True))
    return found


def _title(what: str, words: list[str]) -> str:
    said = words[0] if len(words) == 1 else f"{len(words)} {what}: {words[0]}"
    title = f"contimg on {platform.node()}: {said}"
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 3]}..."


def _time(told: Mapping) -> str:
    return concerns.duration(told["last_s"] - told["first_s"])


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
        except Exception as error:  # whatever it is, the next look may work: nobody else tells
            if str(error) != problem:
                log.exception("no messages")
            problem = str(error)
