"""Products, API and page, over what a real run made. Comes after test_workflow.py, whose run it
uses and changes."""

import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import httpx
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from contimg.client import Client
from contimg.errors import RequestError
from contimg.products import record
from contimg.products import tables as product_tables
from contimg.store import db
from contimg.store.files import read_json
from contimg.store.identity import science_digest
from contimg.web.archive import elsewhere
from tests.conftest import CALIBRATOR_START, ROOT, TARGET_START
from tests.workflow.conftest import BAD_START, BIN, chromium, until

KEY = "the key of this test"


def content(site) -> list[dict]:
    """All rows of the index, without ids and times."""
    with db.reading(site.paths.products_db) as session:
        found = [
            product_tables.columns_of(row)
            for table in (
                product_tables.Image,
                product_tables.QaArtifact,
                product_tables.MeasurementSet,
            )
            for row in session.query(table).order_by(table.path)
        ]
    return [
        {
            k: v
            for k, v in row.items()
            if k not in ("id", "created_at", "processed_at", "stage_updated_at")
        }
        for row in found
    ]


def test_every_product_is_found_and_what_is_altered_is_named(first_run):
    site, _ = first_run
    outcome = site.contimg("verify")
    assert (outcome.returncode, outcome.stdout.strip()) == (
        0,
        "every product is in its place and unaltered",
    )
    image, plot = site.paths.image(TARGET_START, "pbcor.fits"), site.paths.qa(TARGET_START, "flags")
    stranger = site.paths.image(TARGET_START, "old.fits")
    whole = image.read_bytes()
    try:
        image.write_bytes(whole[:-2880] + b"\1" + whole[-2879:])
        plot.rename(plot.with_suffix(".aside"))
        stranger.touch()
        outcome = site.contimg("verify")
    finally:
        image.write_bytes(whole)
        plot.with_suffix(".aside").rename(plot)
        stranger.unlink()
    assert outcome.returncode == 1
    aside = plot.with_suffix(".aside")
    expected = {
        f"{image} was altered",
        f"{plot} is not on disk",
        f"{stranger} is in no database",
        f"{aside} is in no database",
    }
    assert set(outcome.stdout.strip().splitlines()[:-1]) == expected


def test_a_lost_index_is_made_again(first_run):
    site, _ = first_run
    before, said = content(site), []
    site.paths.products_db.unlink()
    record.reconcile(site.config, said.append)
    assert [text[:25] for text in said] == [f"group {CALIBRATOR_START}", f"group {TARGET_START}"]
    assert content(site) == before
    record.reconcile(site.config, said.append)
    assert len(said) == 2


def test_an_image_says_where_it_comes_from(first_run, incoming):
    site, _ = first_run
    chain = json.loads(site.contimg("provenance", f"{TARGET_START}.pbcor.fits").stdout)
    assert chain == json.loads(site.contimg("provenance", TARGET_START).stdout) | {
        "images": chain["images"]
    }
    assert [Path(i["path"]).name for i in chain["images"]] == [f"{TARGET_START}.pbcor.fits"]
    assert len(chain["raw_files"]) == 16
    for file in (chain["raw_files"][3], chain["calibration"]["raw_files"][3]):
        assert file["sha256"] == hashlib.sha256(Path(file["path"]).read_bytes()).hexdigest()
    assert chain["calibration"]["set"] == CALIBRATOR_START
    assert [t["kind"] for t in chain["calibration"]["tables"]] == ["B", "G"]
    assert {s["stage"] for s in chain["stages"]} >= {
        "convert",
        "concat",
        "prepare",
        "apply",
        "image",
        "photometry",
        "qa",
        "index",
    }
    assert all(s["seconds"] > 0 and s["versions"]["casatools"] for s in chain["stages"])
    assert any("snakemake --profile local" in command for command in chain["commands"].values())
    assert chain["configuration"]["digest"] == science_digest(site.config)
    assert (
        chain["configuration"]["values"]["imaging"]["cell_arcsec"]
        == site.config.imaging.cell_arcsec
    )
    refused = site.contimg("provenance", "nothing.fits")
    assert refused.returncode == 1
    assert "no such image" in refused.stderr


def test_archives_can_list_the_images(first_run, tmp_path):
    site, _ = first_run
    assert site.contimg("export", str(tmp_path / "obscore.vot")).returncode == 0
    table = Table.read(tmp_path / "obscore.vot")
    row = table[table["access_url"] == site.paths.image(TARGET_START, "pbcor.fits").as_uri()][0]
    header = fits.getheader(site.paths.image(TARGET_START, "pbcor.fits"))
    assert (row["s_ra"], row["s_dec"]) == pytest.approx(
        (header["CRVAL1"], header["CRVAL2"]), abs=1e-6
    )
    assert (row["t_min"], row["t_exptime"]) == pytest.approx((header["MJD-OBS"], header["EXPTIME"]))
    assert row["em_min"] < 299792458 / header["CRVAL3"] < row["em_max"]
    assert table["s_ra"].unit == "deg"
    assert site.contimg("export", str(tmp_path / "images.csv"), "--what", "images").returncode == 0
    assert len(Table.read(tmp_path / "images.csv")) == 8
    assert "choose one of" in site.contimg("export", str(tmp_path / "x.doc")).stderr


def test_room_and_retention_are_told(first_run):
    found = json.loads(first_run[0].contimg("retention", "--json").stdout)
    assert found["hours_left"] == pytest.approx(
        found["free_bytes"] / found["bytes_a_group"] * 309.24 / 3600
    )
    kinds = ("measurement_sets", "images", "tables", "mosaics")
    assert found["may_be_deleted"] == dict.fromkeys(kinds, 0)
    assert "room for" in first_run[0].contimg("retention").stdout


def test_a_day_has_a_plot_and_a_report(first_run, tmp_path):
    site, _ = first_run
    day = f"day/{TARGET_START[:10]}"
    outcome = site.snakemake("--", day)
    assert outcome.returncode == 0, outcome.stderr
    assert site.paths.day(TARGET_START[:10]).stat().st_size > 20000
    outcome = site.snakemake("--report", str(tmp_path / "day.zip"), "--", day)
    assert outcome.returncode == 0, outcome.stderr
    assert (tmp_path / "day.zip").stat().st_size > 500_000
    with zipfile.ZipFile(tmp_path / "day.zip") as archive:
        (page,) = (name for name in archive.namelist() if name.endswith("report.html"))
        said = archive.read(page).decode()
    for group in (CALIBRATOR_START, TARGET_START):  # captions
        assert f"The image of group {group} in mJy/beam" in said
    assert "contimg provenance GROUP" in said


def test_a_stage_is_done_again_for_a_day_or_a_calibrator(first_run):
    """All groups of the day, finished ones too, and nothing else; the other stages stay."""
    site, _ = first_run
    for name, groups in {
        f"day/{TARGET_START[:10]}": 2,
        "calibrator/3C454.3": 1,
        f"group/{TARGET_START}": 1,
    }.items():
        asked = site.snakemake("--dry-run", "--quiet", "rules", "--forcerun", "image", "--", name)
        words = (line.split() for line in (asked.stdout + asked.stderr).splitlines())
        jobs = {line[0]: line[1] for line in words if len(line) == 2 and line[1].isdigit()}
        assert (jobs["image"], jobs["index"]) == (str(groups), str(groups)), (
            asked.stdout + asked.stderr
        )
        assert not {"convert", "solve", "apply"} & jobs.keys()
    done = site.snakemake("--forcerun", "qa", "--", f"group/{TARGET_START}")
    assert done.returncode == 0, done.stderr
    why = json.loads(site.contimg("why", TARGET_START, "--json").stdout)
    assert [move["state_to"] for move in why["history"]][-4:] == [
        "pending",
        "in_progress",
        "resuming",
        "completed",
    ]
    nothing = site.snakemake("--dry-run", "--", "day/2026-12-24")
    assert "day/2026-12-24: there is no such group here" in nothing.stdout + nothing.stderr


@pytest.fixture(scope="module")
def site(first_run):
    """The site with a group that failed for want of a good file."""
    site, _ = first_run
    site.snakemake("--config", 'ingest={"collecting_timeout_s": 0.001}')
    return site


@pytest.fixture(scope="module")
def serve(site):
    """Start `contimg serve`; gives its address."""
    servers = []

    def start(key: str | None, *options: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {k: v for k, v in os.environ.items() if k != "CONTIMG_API_KEY"} | (
            {} if key is None else {"CONTIMG_API_KEY": key}
        )
        command = [
            str(BIN / "contimg"),
            "serve",
            "--port",
            str(port),
            "--configfile",
            str(site.configfile),
            *options,
        ]
        servers.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        address = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                assert httpx.get(f"{address}/healthz").text == "ok"
                return address
            except httpx.TransportError:
                time.sleep(0.1)
        raise TimeoutError(address)

    yield start
    for server in servers:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def api(serve):
    with httpx.Client(base_url=serve(KEY), timeout=20) as client:
        yield client


def test_the_api_tells_what_the_databases_know(api, site):
    status = api.get("/api/status").json()
    assert status["counts"] == {"completed": 2, "failed": 1}
    assert status["calibration"][0]["set_name"] == CALIBRATOR_START
    assert status["disk"]["free_bytes"] > 0
    assert [g["group_id"] for g in api.get("/api/groups?state=failed").json()["items"]] == [
        BAD_START
    ]
    assert api.get(f"/api/groups?day={TARGET_START[:10]}&limit=1").json()["total"] == 3
    assert "truncated" in json.dumps(api.get(f"/api/groups/{BAD_START}").json()["files"])
    assert "only 15 of 16 subbands" in api.get(f"/api/groups/{BAD_START}").json()["error"]
    assert {m["status"] for m in api.get("/api/ms_index").json()["items"]} == {"ok"}
    assert api.get("/api/caltables?status=active").json()["total"] == 2
    plots = api.get(f"/api/qa?group_id={TARGET_START}&name=bandpass").json()["items"]
    assert (
        api.get(f"/api/qa/{plots[0]['id']}").content
        == site.paths.qa(TARGET_START, "bandpass").read_bytes()
    )
    metrics = api.get("/metrics").text
    assert 'contimg_groups{state="failed"} 1.0' in metrics
    assert "contimg_disk_free_bytes" in metrics
    assert 'contimg_wrong{kind="failed",level="fail"} 1.0' in metrics
    rules = (ROOT / "docs" / "contimg-alerts.yml").read_text()
    asked = set(re.findall(r"contimg_\w+", rules))
    assert asked <= set(re.findall(r"^contimg_\w+", metrics, re.M)), "alerts on what is not there"
    paths = api.get("/openapi.json").json()["paths"]
    assert len([p for p in paths if p.startswith("/api")]) == 27


def test_images_are_found_by_time_place_noise_and_verdict(api):
    everything = api.get("/api/images?type=pbcor&sort=start_mjd").json()
    assert [i["group_id"] for i in everything["items"]] == [CALIBRATOR_START, TARGET_START]
    one, two = everything["items"]
    assert all(i["thumbnail"] for i in everything["items"])

    def found(**filters):
        return [
            i["group_id"]
            for i in api.get("/api/images", params={"type": "pbcor", **filters}).json()["items"]
        ]

    assert found(ra=two["centre_ra_deg"], dec=two["centre_dec_deg"] + 0.9, radius=1) == [
        TARGET_START
    ]
    assert found(ra=two["centre_ra_deg"], dec=two["centre_dec_deg"] + 1.1, radius=1) == []
    east = (two["centre_ra_deg"] + 0.9 / np.cos(np.radians(two["centre_dec_deg"]))) % 360
    assert found(ra=east, dec=two["centre_dec_deg"], radius=1) == [TARGET_START]
    # to the second of the file name's skew
    assert found(start=TARGET_START) in ([TARGET_START], [])
    assert found(end="2026-03-02T20:10:00") == [CALIBRATOR_START]
    assert found(start=one["start_mjd"], end=str(one["start_mjd"] + 0.001)) == [CALIBRATOR_START]
    assert found(max_noise_jy=1e-9) == []
    assert found(verdict=two["verdict"], limit=1, offset=1, sort="start_mjd") == [TARGET_START]
    assert api.get("/api/images?ra=10").json()["detail"] == "a cone needs both ra and dec"


def test_files_come_with_etags_and_ranges(api, site):
    (image,) = api.get(f"/api/images?type=pbcor&group_id={TARGET_START}").json()["items"]
    path, address = site.paths.image(TARGET_START, "pbcor.fits"), f"/api/images/{image['id']}"
    whole = api.get(f"{address}/fits")
    assert whole.content == path.read_bytes()
    assert hashlib.sha256(whole.content).hexdigest() == image["checksum"]
    assert (
        api.get(f"{address}/fits", headers={"if-none-match": whole.headers["etag"]}).status_code
        == 304
    )
    part = api.get(f"{address}/fits", headers={"range": "bytes=2880-5759"})
    assert (part.status_code, part.content) == (206, whole.content[2880:5760])
    assert api.get(f"{address}/fits", headers={"range": f"bytes={10**12}-"}).status_code == 416
    assert api.get(f"{address}/png").content[:4] == b"\x89PNG"
    data = fits.getdata(path).squeeze()
    corner = api.get(f"{address}/pixels?x0=800&y0=700&width=120&height=90&step=3")
    values = np.frombuffer(corner.content, "<f4").reshape(30, 40)
    blocks = data[700:790, 800:920].reshape(30, 3, 40, 3)
    assert np.array_equal(values, np.nanmax(blocks, axis=(1, 3)).astype("<f4"))
    about = json.loads(corner.headers["x-image"])
    assert (about["width"], about["height"], about["wcs"]["NAXIS1"]) == (40, 30, 1800)
    residual = api.get(f"/api/images?type=residual&group_id={TARGET_START}").json()["items"][0][
        "id"
    ]
    assert "CASA image" in api.get(f"/api/images/{residual}/fits").json()["detail"]


NOT_THERE = """
/api/images/999999 /api/images/999999/fits /api/qa/424242 /api/groups/2020-01-01T00:00:00
/groups/2020-01-01T00:00:00 /static/../api.py /static/%2e%2e/api.py /static/..%2fapi.py
/static//etc/passwd /groups/.. /groups/%2e%2e%2fsecret /api/groups/2020-01-01T00:00:00%2f..%2f..
/api/qa/..%2f
"""
NOT_VALID = """
/api/images/0 /api/images/-1 /api/images/abc /api/images/1%20OR%201=1 /api/groups/..
/api/groups/%2e%2e /api/groups/x'%20OR%20'1'='1 /api/groups?state=x'--
/api/groups?day=2026-01-25'%20OR%201=1-- /api/groups?limit=99999999999999999999
/api/images?sort=id;DROP%20TABLE%20images /api/images?verdict=good'--
/api/images?type=pbcor'%20OR%201=1 /api/images?limit=501 /api/images?limit=-1
/api/images?offset=-5 /api/images?start=yesterday'-- /api/images?ra=1&dec=91
/api/images?ra=nan&dec=0 /api/images?group_id=..%2f.. /api/qa?name=../../etc/passwd
/api/qa?name=%2fetc%2fpasswd /api/qa?group_id='%20OR%201=1 /api/ms_index?status=ok'--
/api/caltables?status=x
"""


@pytest.mark.parametrize("target", NOT_THERE.split() + NOT_VALID.split())
def test_what_a_request_must_not_reach_is_refused(api, site, target):
    before = content(site)
    # others tidy paths up
    with closing(http.client.HTTPConnection(api.base_url.host, api.base_url.port)) as raw:
        raw.request("GET", target)
        answer = raw.getresponse()
        text = answer.read().decode()
    assert answer.status == (404 if target in NOT_THERE.split() else 422), text
    assert "root:" not in text
    assert content(site) == before


def test_a_row_that_points_elsewhere_is_not_served(api, site):
    with db.writing(site.paths.products_db, product_tables.Base) as session:
        session.add(
            product_tables.QaArtifact(
                group_id=TARGET_START, name="evil", path="/etc/passwd", created_at="t"
            )
        )
    try:
        (plot,) = api.get("/api/qa?name=evil").json()["items"]
        answer = api.get(f"/api/qa/{plot['id']}")
    finally:
        with db.writing(site.paths.products_db, product_tables.Base) as session:
            session.query(product_tables.QaArtifact).filter_by(name="evil").delete()
    assert answer.status_code == 404
    assert "outside the products' folder" in answer.json()["detail"]


def test_reprocessing_needs_the_key_and_our_own_page(api, serve, site):
    target = f"/api/reprocess/{TARGET_START}"
    body = {"from_stage": "index"}
    assert api.post(target, json=body).status_code == 401
    assert api.post(target, json=body, headers={"x-api-key": "wrong"}).status_code == 401
    elsewhere = api.post(
        target, json=body, headers={"x-api-key": KEY, "origin": "http://evil.example"}
    )
    assert elsewhere.status_code == 403
    words = (
        f"this one is from evil.example, the server is {api.base_url.netloc.decode()}. Behind "
        "a proxy: have it pass Host on"
    )
    assert words in elsewhere.json()["detail"]
    assert "access-control-allow-origin" not in elsewhere.headers
    for nothing in (None, " "):
        off = httpx.post(f"{serve(nothing)}{target}", json=body, headers={"x-api-key": ""})
        assert off.status_code == 403
        assert "CONTIMG_API_KEY" in off.json()["detail"]
    key = {"x-api-key": KEY}
    assert api.post("/api/reprocess/2020-01-01T00:00:00", json=body, headers=key).status_code == 404
    assert api.post(target, json={"from_stage": "../x"}, headers=key).status_code == 422
    # it lacks a file
    assert api.post(f"/api/reprocess/{BAD_START}", json={}, headers=key).status_code == 409
    assert site.paths.result(TARGET_START, "index").exists()


def test_head_is_answered_as_get_is(api):
    """K46: load balancers, wget --spider, curl -I."""
    (image,) = api.get(f"/api/images?type=pbcor&group_id={TARGET_START}").json()["items"]
    name = Path(image["path"]).name
    for path in (
        "/",
        "/healthz",
        "/metrics",
        "/api/status",
        f"/groups/{TARGET_START}",
        f"/api/files/{name}",
        "/sky",
    ):
        head, get = api.head(path), api.get(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == get.headers["content-type"]
    assert int(api.head(f"/api/files/{name}").headers["content-length"]) == image["bytes"]
    assert api.head("/api/images/999999").status_code == 404
    assert all(
        "head" not in methods for methods in api.get("/openapi.json").json()["paths"].values()
    )


def test_files_keep_their_names_one_or_a_days(api, site, tmp_path):
    """K47: the documented curl, a list for wget, a tar."""
    day, name = TARGET_START[:10], f"{TARGET_START}.pbcor.fits"
    whole = site.paths.image(TARGET_START, "pbcor.fits").read_bytes()
    (image,) = api.get(f"/api/images?type=pbcor&group_id={TARGET_START}").json()["items"]
    by_number = tmp_path / "by number"
    by_number.mkdir()
    subprocess.run(
        ["curl", "-s", "-O", f"{api.base_url}/api/files/{name}"], cwd=tmp_path, check=True
    )
    subprocess.run(
        ["curl", "-s", "-O", "-J", f"{api.base_url}/api/images/{image['id']}/fits"],
        cwd=by_number,
        check=True,
    )
    for folder in (tmp_path, by_number):
        assert (folder / name).read_bytes() == whole
    names = {f"{group}.pbcor.fits" for group in (CALIBRATOR_START, TARGET_START)}
    listed = api.get(f"/api/days/{day}/list?publishable=false").text.splitlines()
    assert {address.rpartition("/")[2] for address in listed} == names
    assert httpx.get(next(a for a in listed if a.endswith(name))).content == whole
    subprocess.run(
        f"curl -s {api.base_url}/api/days/{day}/tar?publishable=false | tar xf -",
        shell=True,
        cwd=tmp_path,
        check=True,
    )
    assert {p.name for p in tmp_path.glob("*.fits")} == names
    assert (tmp_path / name).read_bytes() == whole
    may = api.get(f"/api/images?type=pbcor&publishable=true&start={day}").json()["total"]
    assert len(api.get(f"/api/days/{day}/list").text.splitlines()) == may
    assert api.get("/api/days/2020-01-01/list").text == ""
    assert api.get("/api/days/2020-01-01/tar").status_code == 404
    assert api.get("/api/files/..%2f..%2fsite.yaml").status_code in (404, 422)
    assert api.get("/api/files/2020-01-01T00:00:00.pbcor.fits").status_code == 404


NGINX = shutil.which("nginx")


def test_behind_a_proxy_under_a_path_everything_works(serve, site, tmp_path):
    """K48: nginx with docs/contimg-nginx.conf: pages, links, files, lists, the button."""
    if NGINX is None:
        pytest.skip("NOT TESTED behind a proxy: nginx is not installed (apt install nginx-light)")
    inner = serve(KEY, "--prefix", "contimg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    location = (
        (ROOT / "docs" / "contimg-nginx.conf").read_text().replace("http://127.0.0.1:8000", inner)
    )
    temporary = "".join(
        f"{name}_temp_path {tmp_path}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; "
        "user root; events {}\n"
        f"http {{ access_log off; {temporary} "
        f"server {{ listen 127.0.0.1:{port};\n{location}\n}} }}\n"
    )
    proxy = subprocess.Popen([NGINX, "-c", config, "-e", tmp_path / "error.log"])
    try:
        outer = f"http://127.0.0.1:{port}"
        until(lambda: is_there(f"{outer}/contimg/healthz"), "nginx answers")
        seen, todo = set(), {"/contimg/"}
        while todo - seen:
            path = (todo - seen).pop()
            seen.add(path)
            answer = httpx.get(outer + path)
            assert answer.status_code == 200, path
            if "text/html" in answer.headers["content-type"]:
                found = re.findall(r'(?:href|src)="(/[^"#]*)', answer.text)
                assert all(link.startswith("/contimg/") for link in found), found
                todo |= {link for link in found if "/api/qa/" not in link or len(seen) < 8}
        assert len(seen) > 10
        listed = httpx.get(
            f"{outer}/contimg/api/days/{TARGET_START[:10]}/list?publishable=false"
        ).text.splitlines()
        assert httpx.get(listed[0]).status_code == 200
        body, key = {"from_stage": "index"}, {"x-api-key": KEY, "origin": outer}
        assert (
            httpx.post(
                f"{outer}/contimg/api/reprocess/{BAD_START}", json=body, headers=key
            ).status_code
            == 409
        )
        foreign = httpx.post(
            f"{outer}/contimg/api/reprocess/{BAD_START}",
            json=body,
            headers=key | {"origin": "http://x.example"},
        )
        assert foreign.status_code == 403
        assert (
            f"this one is from x.example, the server is 127.0.0.1:{port}"
            in foreign.json()["detail"]
        )
    finally:
        proxy.terminate()
        proxy.wait(20)


def is_there(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def test_many_who_look_at_whole_images_are_served_in_turn(serve, site, figure):
    """K49: 40 at once; the others' pages go on, and the memory stays within bounds."""
    address = serve(None)
    (image,) = httpx.get(f"{address}/api/images?type=pbcor&group_id={TARGET_START}").json()["items"]
    found = subprocess.run(
        ["pgrep", "-f", f"serve --port {address.rpartition(':')[2]}"],
        capture_output=True,
        text=True,
    )
    server = int(found.stdout)
    before = memory_mb(server)

    def look(_):
        return httpx.get(
            f"{address}/api/images/{image['id']}/pixels?step=2", timeout=60
        ).status_code

    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(look, n) for n in range(40)]
        begin = time.monotonic()
        assert httpx.get(f"{address}/healthz", timeout=20).text == "ok"
        waited = time.monotonic() - begin
        assert {one.result() for one in asked} <= {200, 503}
    grown = memory_mb(server) - before
    figure(
        f"40 whole images at once: {grown:.0f} MB more at the most, a page in between after "
        f"{waited:.1f} s"
    )
    assert grown < 300


def memory_mb(process: int) -> float:
    """The most that a process has had."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 1e3


def test_health_is_that_of_the_databases(serve, site):
    """K42: a damaged queue is no health."""
    address, path = serve(None), site.paths.ingest_db
    whole = path.read_bytes()
    for damage in (b"\xa5" * len(whole), whole[:4096] + b"\xa5" * (len(whole) - 4096)):
        other = serve(None)  # it reads them through every ten seconds
        path.write_bytes(damage)
        try:
            answer = httpx.get(f"{other}/healthz")
            if answer.status_code == 200:  # it was asked when it started
                time.sleep(11)
                answer = httpx.get(f"{other}/healthz")
        finally:
            path.write_bytes(whole)
        assert answer.status_code == 503
        assert f"{path}: damaged" in answer.text
    assert httpx.get(f"{address}/healthz").status_code == 200


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options, service = chromium("--window-size=1280,1400")
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, service)
    driver.implicitly_wait(5)
    driver.downloads = downloads
    yield driver
    driver.quit()


def test_a_person_goes_from_the_overview_to_a_fits_file(browser, api, site, figure):
    """Overview, group, image under the pointer, FITS; the values are those of the file."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    browser.get(str(api.base_url))
    headline = browser.find_element(By.CSS_SELECTOR, "#headline h1").text
    assert headline.startswith(f"{BAD_START} failed: ")
    failed = browser.find_element(By.CSS_SELECTOR, "#wrong tbody tr").text
    assert BAD_START in failed
    assert "only 15 of 16 subbands" in failed
    browser.find_element(By.CSS_SELECTOR, f".thumbnails a[href='/groups/{TARGET_START}']").click()
    assert browser.find_element(By.TAG_NAME, "h1").text == TARGET_START
    viewer = browser.find_element(By.CSS_SELECTOR, ".viewer")
    until(lambda: viewer.get_attribute("data-ready"), "the viewer shows its image")
    canvas = browser.find_element(By.TAG_NAME, "canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    path = site.paths.image(TARGET_START, "pbcor.fits")
    data, wcs = fits.getdata(path).squeeze(), WCS(fits.getheader(path)).celestial
    # In full: zoomed in, a pixel of the image is more than one of the screen.
    browser.execute_script(
        "const v = document.querySelector('.viewer').viewer; v.x = 900.5; v.y = 900.5; v.scale = "
        "6; v.refine()"
    )
    until(
        lambda: (
            browser.execute_script("return document.querySelector('.viewer').viewer.tiles.length")
            == 2
        ),
        "a tile in full",
    )
    ActionChains(browser).move_to_element_with_offset(canvas, 30, -60).perform()
    x, y = browser.execute_script(
        "const v = document.querySelector('.viewer').viewer, c = v.canvas, u = c.width / "
        "c.getBoundingClientRect().width;"
        "return [Math.floor(v.x + 30 * u / v.scale), Math.floor(v.y + 60 * u / v.scale)]"
    )
    text = browser.find_element(By.CSS_SELECTOR, ".readout").text
    # the pointer is at a place of the screen
    around = [(i, j) for i in (x - 1, x, x + 1) for j in (y - 1, y, y + 1)]
    expected = {
        f"{data[j, i] * 1e3:.2f} mJy/beam": tuple(map(float, wcs.pixel_to_world_values(i, j)))
        for i, j in around
    }
    (match,) = [flux for flux in expected if text.endswith(flux)][:1]
    ra, dec = (float(v) for v in text.split("(")[1].split(")")[0].split(","))
    assert (ra, dec) == pytest.approx(expected[match], abs=2e-5)
    browser.find_element(By.CSS_SELECTOR, "a.fits").click()
    until(lambda: list(browser.downloads.glob("*.fits")), "the FITS file is there")
    (file,) = browser.downloads.glob("*.fits")
    assert file.read_bytes() == path.read_bytes()
    for page in ("/calibration", "/sky", "/api", f"/groups/{BAD_START}"):
        browser.get(f"{api.base_url}{page}")
    assert "only 15 of 16 subbands" in browser.find_element(By.CSS_SELECTOR, ".error").text
    browser.get(f"{api.base_url}/sky")
    assert len(browser.find_elements(By.TAG_NAME, "ellipse")) == 2
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_day_of_the_instrument_is_on_the_command_line_api_page_and_metrics(browser, api, site):
    from selenium.webdriver.common.by import By

    assert api.get("/api/instrument").status_code == 404
    day = TARGET_START[:10]
    found = json.loads(site.contimg("instrument", day, "--fit", "--json").stdout)
    assert [one["group"] for one in found["groups"]] == [CALIBRATOR_START, TARGET_START]
    assert found["antennas"]["42"]["sefd_jy"] == pytest.approx(6500, rel=0.1)
    assert abs(found["antennas"]["42"]["pointing_east_deg"]) < 0.05  # of the calibrator's transit
    assert "too few" in found["beams"]["16.1"]["not_fitted"]
    for path in found["pictures"]:
        assert Path(path).read_bytes().startswith(b"\x89PNG")
    assert api.get("/api/instrument").json()["antennas"] == found["antennas"]
    name = Path(found["pictures"][0]).name
    assert api.get(f"/api/instrument/{name}").content.startswith(b"\x89PNG")
    assert api.get("/api/instrument/..%2F..%2Fqa.png").status_code in (404, 422)
    assert 'contimg_antenna_sefd_jy{antenna="42"} 6' in api.get("/metrics").text
    browser.get(f"{api.base_url}/instrument")
    assert browser.find_element(By.TAG_NAME, "h1").text == f"Instrument on {day}"
    rows = browser.find_elements(By.CSS_SELECTOR, "#antennas tbody tr")
    assert len(rows) == len(found["antennas"])
    pictures = browser.find_elements(By.CSS_SELECTOR, "#pictures img")
    assert len(pictures) == 2
    pictures = [pictures[0], browser.find_element(By.CSS_SELECTOR, "#days img")]
    for one in pictures:  # the second is lazy
        browser.execute_script("arguments[0].scrollIntoView()", one)
        until(lambda one=one: int(one.get_attribute("naturalWidth")) > 500, "the picture is there")
    again = site.contimg("instrument", "2020-01-01")
    assert (again.returncode, again.stderr.count("no group of 2020-01-01 was imaged")) == (1, 1)


def test_light_curves_are_in_the_api_and_on_pages(browser, api, site):
    """Of one day: the run brought them up to date. Cutouts are of real images."""
    from selenium.webdriver.common.by import By

    (day,) = api.get("/api/days").json()
    # as the last run knew it; the bad group has failed since
    assert (day["strip"], day["groups"], day["state"]) == ("+16.1", 2, "waiting")
    assert "partial" in site.contimg("lightcurves").stdout
    (day,) = api.get("/api/days").json()
    assert f"1 groups failed: {BAD_START}" in day["reason"]
    found = api.get("/api/sources?limit=500").json()
    brightest = max(found["items"], key=lambda one: one["mean_jy"])
    where = f"{brightest['ra_deg']},{brightest['dec_deg']},0.2"
    near = api.get(f"/api/sources?cone={where}").json()["items"]
    assert near[0]["source"] == brightest["source"]
    assert api.get("/api/sources?cone=a,b,c").status_code == 422
    path = f"%2B16.1/{quote(brightest['source'])}"
    (one,) = api.get(f"/api/lightcurves/{path}").json()
    assert one["flux_jy"] == pytest.approx(brightest["mean_jy"])
    assert api.get(f"/api/lightcurves/{path}?format=csv").text.startswith("sday,mjd,flux_jy")
    table = Table.read(
        io.BytesIO(api.get(f"/api/lightcurves/{path}?format=votable").content), format="votable"
    )
    assert table["flux_jy"].unit == "Jy"
    assert api.get("/api/lightcurves/%2B16.1/nobody").status_code == 404
    place = f"{brightest['ra_deg']} {brightest['dec_deg']} 0.05"
    asked = {"ID": one["tile"], "RESPONSEFORMAT": "png"}
    cutout = api.get("/api/cutout", params=asked | {"CIRCLE": place})
    assert cutout.headers["content-type"] == "image/png"
    away = api.get("/api/cutout", params=asked | {"CIRCLE": "10 -30 0.05"})
    assert away.status_code == 404
    browser.get(f"{api.base_url}/sources")
    field = browser.find_element(By.NAME, "find")
    field.send_keys(brightest["source"])
    field.submit()
    until(
        lambda: browser.find_element(By.TAG_NAME, "h1").text == brightest["source"],
        "the source's page",
    )
    picture = browser.find_element(By.CSS_SELECTOR, "#cutouts img")
    browser.execute_script("arguments[0].scrollIntoView()", picture)
    until(lambda: int(picture.get_attribute("naturalWidth")) == 160, "the cutout is there")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#curve circle")) == 1
    assert len(browser.find_elements(By.CSS_SELECTOR, "#neighbours tbody tr")) > 0


def test_a_person_reprocesses_a_group_from_the_page(browser, api, site):
    """A wrong key is refused in words; the right one puts the group back, and the page says so by
    itself; a run does it."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    browser.get(f"{api.base_url}/groups/{TARGET_START}")
    form = browser.find_element(By.CSS_SELECTOR, "form.reprocess")
    Select(form.find_element(By.NAME, "from_stage")).select_by_visible_text("qa")
    said = form.find_element(By.TAG_NAME, "output")
    for key, words in (
        ("wrong", "missing or wrong X-API-Key"),
        (KEY, f"{TARGET_START}: pending again, from qa on"),
    ):
        field = form.find_element(By.NAME, "key")
        field.clear()
        field.send_keys(key)
        form.find_element(By.TAG_NAME, "button").click()
        until(lambda words=words: words in said.text, f"the page says: {words}")

    def state() -> str:  # in one step: the page replaces it
        return browser.execute_script("return document.querySelector('#state .state').textContent")

    until(lambda: "pending" in state(), "the state is fresh")
    assert not site.paths.result(TARGET_START, "qa").exists()
    assert api.get(f"/api/groups/{TARGET_START}").json()["state"] == "pending"
    outcome = site.snakemake()
    assert outcome.returncode == 0, outcome.stderr
    assert api.get(f"/api/groups/{TARGET_START}").json()["state"] == "completed"
    until(lambda: "completed" in state(), "the page is live", seconds=60)
    assert read_json(site.paths.result(TARGET_START, "index"))["images"] == 4
    assert site.contimg("verify").returncode == 0


def test_an_astronomer_has_images_and_light_curves_as_objects(api, site):
    """contimg.client against the running server: pandas and astropy."""
    there = Client(str(api.base_url))
    assert there.status()["counts"] == {"completed": 2, "failed": 1}
    images = there.images(start=CALIBRATOR_START[:10], publishable=True)
    assert list(images.group_id) == [TARGET_START, CALIBRATOR_START]
    assert len(there.images(most=1)) == 1
    hdus = there.image(TARGET_START)
    path = site.paths.image(TARGET_START, "pbcor.fits")
    assert np.array_equal(hdus[0].data, fits.getdata(path), equal_nan=True)
    place = SkyCoord(images.centre_ra_deg[0], images.centre_dec_deg[0], unit="deg")
    assert list(there.images(at=place, radius_deg=0.1).group_id) == [TARGET_START]
    piece = there.cutout(TARGET_START, place.galactic, radius_deg=0.05)
    x, y = WCS(piece.header).celestial.world_to_pixel(place)
    assert np.hypot(x - piece.data.shape[-1] / 2, y - piece.data.shape[-2] / 2) < 2
    assert site.contimg("lightcurves").returncode == 0
    near = there.sources(at=place, radius_deg=1.0)
    everything = there.sources()
    assert 0 < len(near) < len(everything)
    name = near.sort_values("mean_jy").source.iloc[-1]
    curve = there.lightcurve(name)
    assert list(curve.flux_jy) == pytest.approx(list(near[near.source == name].mean_jy), rel=0.05)
    for call, words in (
        (lambda: there.lightcurve("nobody"), "in no strip"),
        (lambda: there.image("2020-01-01T00:00:00"), "404: there is no image"),
        (lambda: there.images(start="soon"), "'soon' is neither an MJD nor a UTC time"),
        (lambda: Client("http://127.0.0.1:9").status(), "does not answer"),
    ):
        with pytest.raises(RequestError, match=words):
            call()


def test_images_are_found_by_day_verdict_declination_and_name(api, site):
    page = api.get("/images").text
    assert page.index(TARGET_START) < page.index(CALIBRATOR_START)  # the latest first
    for asked, number in (
        ({"day": TARGET_START[:10]}, 2),
        ({"day": TARGET_START[:16]}, 1),
        ({"verdict": "fail"}, 0),
        ({"dec": "16.1"}, 2),
        ({"dec": "54"}, 0),
        ({"day": "2020-01-01", "verdict": "good", "dec": "16.1"}, 0),
    ):
        words = f"<p>{number} {'image' if number == 1 else 'images'}"
        assert words in api.get("/images", params=asked).text
    assert api.get("/images", params={"dec": "north"}).status_code == 422
    for typed, there in (
        (TARGET_START, f"/groups/{TARGET_START}"),
        (TARGET_START[:10], f"/days/{TARGET_START[:10]}"),
        (TARGET_START[:16].replace("T", " "), f"/groups/{TARGET_START}"),
        ("2020-01", "/images?day=2020-01"),
        ("a&verdict=fail#%", "/images?day=a%26verdict%3Dfail%23%25"),
    ):
        assert api.get("/find", params={"group": typed}).headers["location"] == there
    page = api.get(f"/groups/{TARGET_START}").text
    assert f'href="/groups/{CALIBRATOR_START}" rel="prev"' in page
    assert f'href="/groups/{BAD_START}" rel="next"' in page
    assert (
        f"ds9 -scale zscale -cmap inferno &#39;{site.paths.image(TARGET_START, 'pbcor.fits')}"
        in page
    )


def test_a_day_has_its_numbers_its_calibration_what_failed_and_a_download(api, site):
    day = TARGET_START[:10]
    page = api.get(f"/days/{day}").text
    assert f'2 images; calibrated by <a href="/groups/{CALIBRATOR_START}">' in page
    assert page.count('class="mark good"') == 4  # noise and flux of two images
    assert f'<a href="/groups/{BAD_START}">' in page
    assert "only 15 of 16 subbands" in page
    files = api.get(f"/api/days/{day}/list").text.split()
    assert [url.rpartition("/")[2] for url in files] == [
        f"{group}.pbcor.fits" for group in (CALIBRATOR_START, TARGET_START)
    ]
    assert api.get("/days/2020-01-01").status_code == 404


def test_an_image_opens_in_carta_where_there_is_one(site):
    folder, name = site.paths.image(TARGET_START, "pbcor.fits"), f"{TARGET_START}.pbcor.fits"
    for url, start in (("http://carta:3002", "?"), ("http://carta:3002/?token=a", "&")):
        link = elsewhere(str(folder), url)["carta"]
        asked = dict(parse_qsl(urlsplit(link).query))
        assert link.startswith(f"{url}{start}folder=")
        assert (asked["folder"], asked["file"]) == (str(folder.parent), name)
    assert elsewhere(str(folder), None)["carta"] == ""


AXE = (Path(__file__).parent / "axe.min.js").read_text()
PAGES = (
    *("/", "/images", f"/days/{TARGET_START[:10]}", f"/groups/{TARGET_START}", "/calibration"),
    *("/instrument", "/sources", "/sky", "/map", "/api", "/nothing"),
)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1300, 375], ids=["desk", "phone"])
def test_pages_have_no_serious_fault_for_who_cannot_see_them_and_fit(browser, api, width, dark):
    """axe-core's rules, by light and dark, at a desk and on a phone; no page is wider than its
    window."""
    told = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", told)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    look = "const done = arguments[0]; axe.run().then((r) => done(r.violations))"
    try:
        some = api.get("/api/sources?limit=1").json()["items"][0]
        source = f"/sources/{quote(some['strip'])}/{quote(some['source'])}"
        for page in (*PAGES, source):
            browser.get(f"{api.base_url}{page}")
            browser.execute_script(AXE)
            found = [
                (one["id"], one["nodes"][0]["html"])
                for one in browser.execute_async_script(look)
                if one["impact"] in ("serious", "critical")
            ]
            assert found == [], page
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, page
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
