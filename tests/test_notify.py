"""What is wrong, as concerns; and that people are told of it: a real SMTP server, a real HTTP
server."""

import json
import platform
import socket
import threading
import time
from datetime import UTC, datetime
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from aiosmtpd.controller import Controller

from contimg import notify, report
from contimg.concerns import Concern, concerns, headline
from contimg.config import from_mapping
from contimg.errors import ConfigError
from contimg.paths import Paths
from contimg.products import tables as product_tables
from contimg.products.sources import Base as SourcesBase
from contimg.products.sources import Change
from contimg.queue import tables as queue_tables
from contimg.store import db
from contimg.store.files import lock, read_json, write_json
from tests.workflow.conftest import until

START_S = datetime(2026, 11, 1, tzinfo=UTC).timestamp()


@pytest.fixture
def site(tmp_path):
    return from_mapping(
        {
            "paths": {name: str(tmp_path / name) for name in ("incoming", "products", "state")},
            "notify": {"file": str(tmp_path / "addresses"), "calm_minutes": 10},
        }
    )


def recent(number: int = 0) -> str:
    """A group id of now."""
    return db.utc(time.time() - 309 * number)[:19]


def put(site, group: str, state: str, **columns) -> None:
    """A group of this state, by the queue's moves."""
    now_s = db.utc(time.time())
    with db.writing(Paths.of(site).ingest_db, queue_tables.Base) as session:
        row = session.get(queue_tables.Group, group)
        if row is None:
            row = queue_tables.Group(
                group_id=group,
                state="collecting",
                received_at=now_s,
                last_update=now_s,
                expected_subbands=16,
                chunk_minutes=5,
            )
            session.add(row)
            session.flush()
        for step in _way(row.state, state):
            row.state = step
            session.flush()
        for name, value in columns.items():
            setattr(row, name, value)


def _way(state: str, wanted: str) -> list[str]:
    """The shortest way from one state to another that the table of moves allows."""
    ways = [[state]]
    for way in ways:
        if way[-1] == wanted:
            return way[1:]
        ways += [[*way, one] for one in queue_tables.MOVES[way[-1]] if one not in way]
    raise LookupError(wanted)


def wrong(site) -> list[Concern]:
    return concerns(site, report.status(site))


def test_nothing_is_wrong_where_groups_come_and_are_done(site):
    put(site, recent(), "completed")
    assert wrong(site) == []
    assert headline(report.status(site), []) == (
        "warn",
        f"Up to date, until {recent()}; no watcher",
    )
    write_json(Paths.of(site).watcher, {"pid": 1, "at": "-", "problem": None})
    (one,) = wrong(site)
    assert one.words.startswith("no watcher is at work")
    assert "contimg watch" in one.mend


def test_groups_that_fail_alike_are_one_cause(site):
    alike = "SubbandError: {}_sb05.hdf5: truncated ({} of 145.3 MB)"
    for k in range(30):
        group = recent(k)
        put(site, group, "failed", error=alike.format(group, 10.5 + k))
    put(site, recent(31), "failed", error="CalibrationError: no solution")
    found = wrong(site)
    assert len(found) == 2
    assert {one.level for one in found} == {"fail"}
    assert sum(" and 29 more failed: SubbandError" in one.words for one in found) == 1
    level, words = headline(report.status(site), found)
    assert level == "fail"
    assert words.endswith("; 1 thing more")


@pytest.fixture
def watched(site):
    """There is a watcher, as far as files say."""
    write_json(Paths.of(site).watcher, {"pid": 1, "at": "-", "problem": None})
    with lock(Paths.of(site).watch_lock, wait=False, what="a watcher"):
        yield


def test_what_is_wrong_with_the_data(site, watched):
    put(site, "2026-01-25T22:26:05", "completed")
    (one,) = wrong(site)
    age = datetime.now(UTC) - datetime(2026, 1, 25, 22, 26, 5, tzinfo=UTC)
    days = round(age.total_seconds() / 86400)
    assert one.words == f"the newest data are {days} days old (2026-01-25T22:26:05)"
    assert str(site.paths.incoming) in one.mend
    put(site, recent(), "pending", processing_stage="waiting_calibration")
    (one,) = wrong(site)
    assert one.words == "1 group waits for a calibration"


def test_a_disk_that_does_for_less_than_a_day(site, watched, monkeypatch):
    free = 10 * 2_000_000_000
    with db.writing(Paths.of(site).products_db, product_tables.Base) as session:
        session.add(
            product_tables.MeasurementSet(
                path="a.ms", group_id=recent(), status="ok", stage="index", bytes=2_000_000_000,
                processed_at="-", stage_updated_at="-", cal_applied=True, mid_mjd=61000.0,
                start_mjd=61000.0,
                end_mjd=61000.0,
            )
        )  # fmt: skip
    put(site, recent(), "completed")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    (one,) = wrong(site)
    assert one.level == "fail"
    assert "does for 0.9 h more (20 GB)" in one.words
    assert one.mend == "contimg retention says what may go"


def test_a_cause_is_told_once_and_when_it_is_over():
    cause = Concern("behind", "fail", "behind by 2 h", "do")
    fresh, over, told = notify.news([cause], {}, START_S, 600)
    assert (fresh, over) == ([cause], [])
    worse = Concern("behind", "fail", "behind by 3 h", "do")
    fresh, over, told = notify.news([worse], told, START_S + 3600, 600)
    assert (fresh, over) == ([], [])
    for after_s, is_over in ((60, []), (590, []), (610, ["behind"])):
        fresh, over, _ = notify.news([], told, START_S + 3600 + after_s, 600)
        assert (fresh, over) == ([], is_over)
    # it came back within the calm: nothing is said
    *_, told = notify.news([], told, START_S + 3700, 600)
    assert notify.news([worse], told, START_S + 3800, 600)[:2] == ([], [])


def test_what_grows_grave_is_told_again_and_another_problem_is_another_cause(site, watched):
    late = {"behind_s": 1000.0, "oldest_unfinished": "G", "counts": {"pending": 1}}
    status = report.status(site) | late
    (warned,) = concerns(site, status)
    (grave,) = concerns(site, status | {"behind_s": 4000.0})
    assert (warned.level, grave.level) == ("warn", "fail")
    *_, told = notify.news([warned], {}, START_S, 0)
    assert notify.news([grave], told, START_S + 60, 600)[0] == [grave]
    problems = ("disk full", "database damaged")
    keys = {
        concerns(site, status | {"behind_s": 0, "watcher": {"problem": problem}})[0].key
        for problem in problems
    }
    assert len(keys) == 2


def test_an_image_that_must_not_be_used_does_not_end_by_growing_old():
    bad = Concern("image 1", "warn", "the image of G must not be used", "look", ends=False)
    *_, told = notify.news([bad], {}, START_S, 0)
    assert notify.news([], told, START_S + 90000, 600)[:2] == ([], [])


def test_a_candidate_is_told_once_though_its_name_moves():
    one = Concern("new J1", "warn", "new: J1", "look", (10.0, 16.0), ends=False)
    moved = Concern("new J2", "warn", "new: J2", "look", (10.0 + 3 / 3600, 16.0))
    other = Concern("new J3", "warn", "new: J3", "look", (10.1, 16.0))
    *_, told = notify.news([one], {}, START_S, 0)
    told = json.loads(json.dumps(told))  # as it is kept
    fresh, over, _ = notify.news([moved, other], told, START_S + 60, 0)
    assert fresh == [other]
    assert over == []  # what is new in the sky does not end


class _Mailbox:
    """What a mail server took."""

    def __init__(self):
        self.mails = []

    async def handle_DATA(self, server, session, envelope):
        mail = message_from_bytes(envelope.content)
        body = next(p for p in mail.walk() if p.get_content_maintype() == "text")
        self.mails.append((mail["Subject"], body.get_payload(decode=True).decode()))
        return "250 OK"


@pytest.fixture
def mailbox():
    box = _Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as free:
        box.port = free.getsockname()[1]
    controller = Controller(box, hostname="127.0.0.1", port=box.port)
    controller.start()
    yield box
    controller.stop()


@pytest.fixture
def webhook():
    """An HTTP server that keeps what was posted; `works` false: it refuses."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.works:
                server.posted.append(body)
            self.send_response(200 if server.works else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.posted, server.works = [], True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def addresses(site, *lines: str) -> None:
    site.notify.file.write_text("\n".join(lines))
    site.notify.file.chmod(0o600)


def test_mail_and_webhook_bring_a_failed_group_and_its_end(site, mailbox, webhook):
    mail = f"mailto://127.0.0.1:{mailbox.port}?from=pipe@ovro.test&to=op@ovro.test&mode=insecure"
    addresses(site, mail, f"json://127.0.0.1:{webhook.server_port}/")
    send = notify.sender(site.notify.file)
    group = recent()
    put(site, group, "failed", error="CasaError: gaincal: no solution")
    said = f"{group} failed: CasaError: gaincal: no solution"
    here = f"contimg on {platform.node()}: "
    assert notify.tell(site, send, START_S) == ([here + said], True)
    assert notify.tell(site, send, START_S + 60) == ([], True)
    put(site, group, "completed")
    assert notify.tell(site, send, START_S + 120) == ([], True)
    assert notify.tell(site, send, START_S + 800) == ([f"{here}over: {said}"], True)
    assert notify.tell(site, send, START_S + 860) == ([], True)
    assert [one["type"] for one in webhook.posted] == ["failure", "success"]
    for title, body in (
        mailbox.mails[0],
        (webhook.posted[0]["title"], webhook.posted[0]["message"]),
    ):
        assert title == here + said
        assert said in body
        assert f"put good files of the missing subbands into {site.paths.incoming}" in body
    assert [title for title, _ in mailbox.mails] == [one["title"] for one in webhook.posted]
    assert f"it was: {said}\n  for 60 s" in mailbox.mails[1][1].replace("\r", "")
    assert read_json(Paths.of(site).told) == {}


def test_a_new_source_is_told_with_its_place(site, mailbox):
    with db.writing(Paths.of(site).sources_db, SourcesBase) as session:
        session.add(
            Change(
                tract="+16.1_345", sday=9830, strip="+16.1", mid_mjd=61000.0, ra_deg=347.9,
                dec_deg=16.35, flux_jy=0.012, error_jy=0.001, new=True, snr=12.0,
            )
        )  # fmt: skip
    mail = f"mailto://127.0.0.1:{mailbox.port}?from=pipe@ovro.test&to=op@ovro.test&mode=insecure"
    addresses(site, mail)
    send = notify.sender(site.notify.file)
    (title,), _ = notify.tell(site, send, START_S)
    assert "new: J2311" in title
    assert notify.tell(site, send, START_S + 86400) == ([], True)
    assert "J2311" in mailbox.mails[0][1]
    assert "12.0 mJy" in mailbox.mails[0][1]


def test_what_nobody_took_is_told_again(site, webhook):
    addresses(site, f"json://127.0.0.1:{webhook.server_port}/")
    send = notify.sender(site.notify.file)
    put(site, recent(), "failed", error="disk full")
    webhook.works = False
    assert notify.tell(site, send, START_S) == ([], False)
    webhook.works = True
    assert notify.tell(site, send, START_S + 60)[1]
    webhook.works = False
    put(site, recent(), "completed")
    for group in report.failed(site):
        put(site, group["group"], "completed")
    assert notify.tell(site, send, START_S + 1000) == ([], False)
    webhook.works = True
    assert notify.tell(site, send, START_S + 1060)[1]
    assert len(webhook.posted) == 2


def test_the_thread_of_the_watcher_tells(site, webhook, monkeypatch):
    monkeypatch.setattr(notify, "LOOK_EVERY_S", 0.1)
    addresses(site, f"json://127.0.0.1:{webhook.server_port}/")
    put(site, recent(), "failed", error="disk full")
    notify.start(site)
    until(lambda: webhook.posted, "a message", seconds=20)
    time.sleep(0.5)
    assert len(webhook.posted) == 1


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (None, 0o600, "there is no such file"),
        ("json://127.0.0.1/", 0o644, "others can read it: chmod 600"),
        ("nonsense", 0o600, "no address that apprise understands"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(site, text, mode, said):
    if text is not None:
        site.notify.file.write_text(text)
        site.notify.file.chmod(mode)
    with pytest.raises(ConfigError, match=said):
        notify.sender(site.notify.file)
