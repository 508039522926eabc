"""Tracts through the workflow: targets, resumption, and what makes one anew."""

import io
import json
import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
import pyvo
import yaml
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from PIL import Image

from contimg.mosaics.tracts import crossed
from contimg.stages.mosaic import files_of
from contimg.store.files import read_json, write_json
from tests.accuracy import _peak
from tests.conftest import CALIBRATOR_START, ROOT, TARGET_START
from tests.workflow.conftest import BIN, SMALL_IMAGES, Site, chromium, make_site, until
from tests.workflow.test_workflow import listing, truth_of

MOSAICS = {
    "cell_arcsec": SMALL_IMAGES["cell_arcsec"],
    "height_deg": 4.2,
    "catalogues": [],
    "hips": ["deep"],
}


@pytest.fixture(scope="module")
def site(incoming, tmp_path_factory):
    """A site of its own, where both groups are done: images are made again here."""
    folder = tmp_path_factory.mktemp("mosaics")
    found = make_site(folder, incoming, imaging=SMALL_IMAGES, mosaics=MOSAICS)
    outcome = found.snakemake()
    assert outcome.returncode == 0, outcome.stderr
    return found


def tracts_of(site, group: str) -> dict[str, int]:
    """Tracts that a group's image may show, and the day."""
    (strip,) = {name.partition(".v")[0] for name in site.paths.references()}
    mjd = read_json(site.paths.result(group, "convert"))["mid_mjd"]
    return dict(crossed(mjd, strip, 2.0))


@pytest.fixture(scope="module")
def target(site):
    """epoch/STRIP/DAY of both groups."""
    found = tracts_of(site, CALIBRATOR_START) | tracts_of(site, TARGET_START)
    (day,) = set(found.values())
    return f"epoch/{next(iter(found)).partition('_')[0]}/{day}"


@pytest.fixture(scope="module")
def made(site, target):
    outcome = site.snakemake("--", target)
    assert outcome.returncode == 0, outcome.stderr
    return outcome


def said_of(site) -> str:
    return site.contimg("tracts").stdout


def results(site) -> dict[str, int]:
    """When the results of mosaics were written, by name."""
    return {
        name: site.paths.result(name, "mosaic").stat().st_mtime_ns
        for name in site.paths.with_result("mosaic")
    }


def test_a_dry_run_names_the_tracts_and_touches_nothing(site, target):
    before = listing(site.paths.products) | listing(site.paths.state)
    outcome = site.snakemake("-n", "--", target)
    assert outcome.returncode == 0, outcome.stderr
    said = outcome.stdout + outcome.stderr
    for name, day in tracts_of(site, TARGET_START).items():
        assert f"{name} on day {day}: mosaic" in said
    assert listing(site.paths.products) | listing(site.paths.state) == before
    number = len(tracts_of(site, CALIBRATOR_START) | tracts_of(site, TARGET_START))
    assert f"not made: {target} ({number} tracts)" in said_of(site)
    wrong = site.snakemake("-n", "--", "tract/+50.0_100")
    assert wrong.returncode == 1
    assert "no image that is done, or to be made, shows any of it" in wrong.stderr + wrong.stdout


def test_a_day_is_made_of_the_images_that_may_be_published(site, made, incoming, figure):
    rows = json.loads(site.contimg("tracts", "--json").stdout)
    days = {row["tract"]: row for row in rows if row["kind"] == "mosaic"}
    assert days.keys() == {*tracts_of(site, CALIBRATOR_START), *tracts_of(site, TARGET_START)}
    assert {row["tract"] for row in rows if row["kind"] == "deep"} == days.keys()
    ratios, offsets = [], []
    sources = {
        one["name"]: one
        for group in (CALIBRATOR_START, TARGET_START)
        for one in json.loads(truth_of(incoming, group).read_text())["sources"]
    }
    for row in days.values():
        used = [one for one in row["inputs"].values() if one["used"]]
        assert used
        assert all(one["verdict"] in ("good", "warn") for one in used)
        head = fits.getheader(row["path"])
        assert [head[f"IN{k:06d}"].partition(" ")[0] for k in range(len(used))] == [
            group for group, one in row["inputs"].items() if one["used"]
        ]
        with fits.open(row["weight_path"]) as hdus:
            weight, number = hdus[0].data, hdus["NUMBER"].data
            assert 1 <= number.max() <= len(used)
        image, wcs = fits.getdata(row["path"]), WCS(head)
        assert ((weight > 0) == np.isfinite(image)).all()
        for one in sources.values():
            x, y = (float(v) for v in wcs.wcs_world2pix(one["ra"], one["dec"], 0))
            i, j = int(np.round(y)), int(np.round(x))
            if not (3 < i < image.shape[0] - 3 and 3 < j < image.shape[1] - 3):
                continue
            flux_jy = one["flux"] * (row["freq_hz"] / 1.4e9) ** one["alpha"]
            if weight[i, j] == 0 or flux_jy * np.sqrt(weight[i, j]) < 40:
                continue
            peak_jy, dx, dy = _peak(image[i - 1 : i + 2, j - 1 : j + 2])
            ratios.append(peak_jy / flux_jy)
            offsets.append(np.hypot(j + dx - x, i + dy - y) * MOSAICS["cell_arcsec"])
    figure(f"{len(ratios)} bright sources in mosaics: flux ratio {np.median(ratios):.3f}")
    assert len(ratios) > 5
    assert np.median(ratios) == pytest.approx(1, abs=0.02)
    assert np.median(offsets) < 1.0


@pytest.fixture(scope="module")
def server(site, made):
    """Address of a `contimg serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(BIN / "contimg"), "serve", "--port", str(port)]
    command += ["--configfile", str(site.configfile)]
    process = subprocess.Popen(command, cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    until(lambda: _answers(address), "the server", 60)
    yield address
    process.terminate()
    process.wait(20)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz").text == "ok"
    except httpx.TransportError:
        return False


def test_the_virtual_observatory_finds_images_and_mosaics(site, server):
    """By place and time, with pyvo; and gets the files."""
    assert site.contimg("tracts").returncode == 0
    service = pyvo.dal.SIA2Service(f"{server}/sia2")
    here = read_json(site.paths.result(TARGET_START, "image"))["centre_deg"]
    found = service.search(pos=(*here, 0.1))
    names = {row["obs_id"] for row in found}
    assert {TARGET_START, *tracts_of(site, TARGET_START)} & names
    assert TARGET_START in names
    assert any(name.startswith("+16.1_") for name in names)
    assert len(service.search(pos=(100.0, -30.0, 1.0))) == 0
    imaged = read_json(site.paths.result(CALIBRATOR_START, "image"))
    times = tuple(Time(imaged[end], format="mjd") for end in ("start_mjd", "end_mjd"))
    some = service.search(time=times, collection="DSA-110 continuum")
    assert {row["obs_id"] for row in some} == {CALIBRATOR_START}
    assert len(service.search(maxrec=1)) == 1
    assert {row["calib_level"] for row in service.search(calib_level=4)} == {4}
    row = next(row for row in found if row["obs_id"].startswith("+16.1_"))
    body = httpx.get(row["access_url"]).content
    (path,) = (
        r["path"]
        for r in json.loads(site.contimg("tracts", "--json").stdout)
        if r["name"] == row["obs_id"]
    )
    assert body == Path(path).read_bytes()


def test_a_piece_of_an_image_is_what_the_image_has_there(site, server):
    """SODA, from a group's image and from mosaics, with pyvo; FITS and PNG."""
    ra, dec = read_json(site.paths.result(TARGET_START, "image"))["centre_deg"]
    rows = json.loads(site.contimg("tracts", "--json").stdout)
    files = {row["name"]: Path(row["path"]) for row in rows}
    files[TARGET_START] = site.paths.image(TARGET_START, "pbcor.fits")
    asked = 0
    for name, path in files.items():
        with fits.open(path) as hdus:
            whole, wcs = np.squeeze(hdus[0].data), WCS(hdus[0].header).celestial
        x, y = (round(float(v)) for v in wcs.wcs_world2pix(ra, dec, 0))
        if not (30 < x < whole.shape[1] - 30 and 30 < y < whole.shape[0] - 30):
            continue
        query = pyvo.dal.adhoc.SodaQuery(f"{server}/api/cutout", circle=(ra, dec, 0.05), id=name)
        with fits.open(io.BytesIO(query.execute_stream().read())) as hdus:
            piece, of_piece = hdus[0].data, WCS(hdus[0].header)
        i, j = (round(float(v)) for v in of_piece.wcs_world2pix(ra, dec, 0))
        half = min(i, j)
        expected = whole[y - half : y + half + 1, x - half : x + half + 1]
        assert np.array_equal(
            piece[j - half : j + half + 1, i - half : i + half + 1], expected, equal_nan=True
        )
        words = {
            "ID": name,
            "POS": f"RANGE {ra - 0.05} {ra + 0.05} {dec - 0.05} {dec + 0.05}",
            "RESPONSEFORMAT": "image/png",
        }
        picture = httpx.get(f"{server}/api/cutout", params=words)
        assert picture.content.startswith(b"\x89PNG")
        asked += 1
    assert asked >= 2
    for wrong, status in (
        ({"ID": "../etc"}, 422),
        ({"ID": "+99.0_000", "CIRCLE": "1 2 0.1"}, 404),
        ({"ID": TARGET_START, "CIRCLE": "1 2"}, 422),
        ({"ID": TARGET_START, "CIRCLE": f"{ra} {dec} 30"}, 422),
        ({"ID": TARGET_START, "CIRCLE": "10 -30 0.1"}, 404),
        ({"ID": TARGET_START, "POS": "BLOB 1 2 3"}, 422),
        ({"ID": TARGET_START, "POS": " "}, 422),
    ):
        assert httpx.get(f"{server}/api/cutout", params=wrong).status_code == status, wrong


def test_from_a_place_in_a_deep_image_back_to_the_raw_files(site, made, incoming):
    ra, dec = read_json(site.paths.result(TARGET_START, "image"))["centre_deg"]
    name = next(n for n, row in _deep(site).items() if TARGET_START in row["groups"])
    said = json.loads(site.contimg("provenance", name, "--at", f"{ra},{dec}").stdout)
    assert TARGET_START in said["groups"]
    files = said["groups"][TARGET_START]["raw_files"]
    assert len(files) == 16
    assert all(Path(one["path"]).parent == incoming and one["sha256"] for one in files)
    assert site.contimg("verify").returncode == 0, site.contimg("verify").stdout


def _deep(site) -> dict[str, dict]:
    rows = json.loads(site.contimg("tracts", "--json").stdout)
    found = {}
    for row in rows:
        if row["kind"] == "deep":
            days = [one for one in rows if one["kind"] == "mosaic" and one["tract"] == row["tract"]]
            found[row["name"]] = {"groups": {g for day in days for g in day["inputs"]}}
    return found


def test_what_is_there_is_not_made_again(site, made, target):
    before = results(site)
    outcome = site.snakemake("--", target)
    assert outcome.returncode == 0, outcome.stderr
    assert results(site) == before


def test_an_image_that_is_made_again_makes_exactly_its_tracts_anew(site, made, target):
    before = results(site)
    assert site.contimg("reprocess", TARGET_START, "--from", "image").returncode == 0
    outcome = site.snakemake()
    assert outcome.returncode == 0, outcome.stderr
    assert results(site) == before  # nobody asked
    outcome = site.snakemake("--", target)
    assert outcome.returncode == 0, outcome.stderr
    after = results(site)
    anew = {name.rpartition(".")[0] for name in before if after[name] != before[name]}
    assert anew == tracts_of(site, TARGET_START).keys()
    for name in anew:  # and the sum has it as it is now
        made = read_json(site.paths.result(f"{name}.{_day(target)}", "mosaic"))
        held = read_json(site.paths.result(name, "deep"))["inputs"][_day(target)]["in_sum"]
        assert held == made["checksums"][made["images"]["fits"]]


def test_another_day_is_added_to_the_sum_though_nobody_asks_for_the_first(site, made, target):
    """A second day, as a run leaves it: what the first day's groups show, a day later."""
    name, day = next(iter(results(site))).rsplit(".", 1)
    first = read_json(site.paths.result(f"{name}.{day}", "mosaic"))
    before = f"{int(day) - 1}"
    files = {}
    for ending in ("fits", "weight.fits"):
        files[ending] = site.paths.mosaic(name, before, ending)
        shutil.copy(site.paths.mosaic(name, day, ending), files[ending])
    with fits.open(files["fits"], mode="update") as hdus:
        hdus[0].header["OBJECT"] = "another day"
    result = first | {"sday": int(before)} | files_of(files)
    write_json(site.paths.result(f"{name}.{before}", "mosaic"), result)
    try:
        outcome = site.snakemake("--", target)
        assert outcome.returncode == 0, outcome.stderr
        deep = read_json(site.paths.result(name, "deep"))
        assert {d: one["used"] for d, one in deep["inputs"].items()} == {before: True, day: True}
        assert deep["history"][-1]["days"] == 2
        compared = read_json(site.paths.result(f"{name}.{day}", "difference"))
        assert compared["others"] == [before]
        assert compared["found"] == 0
    finally:
        for path in (*files.values(), site.paths.result(f"{name}.{before}", "mosaic")):
            path.unlink()
        assert site.snakemake("--forcerun", "deep", "--", target).returncode == 0
    deep = read_json(site.paths.result(name, "deep"))
    assert [d for d, one in deep["inputs"].items() if one["used"]] == [day]


def _day(target: str) -> str:
    return target.rpartition("/")[2]


def test_an_image_that_must_not_be_published_any_more_leaves_its_mosaics(
    site, made, target, tmp_path, server
):
    values = yaml.safe_load(site.configfile.read_text())
    (tmp_path / "site.yaml").write_text(
        yaml.safe_dump(values | {"validation": {"publish": ["unverified"]}})
    )
    strict = Site(tmp_path / "site.yaml")
    assert strict.contimg("registry", "verify").returncode == 0  # marks the images
    rows = json.loads(site.contimg("tracts", "--json").stdout)
    assert all("it has the image of" in r["unpublishable"] for r in rows if r["kind"] == "mosaic")
    assert all("must not be" in r["unpublishable"] for r in rows if r["kind"] == "deep")
    outcome = strict.snakemake("--", target)
    assert outcome.returncode == 0, outcome.stderr
    rows = json.loads(site.contimg("tracts", "--json").stdout)
    for row in rows:
        if row["kind"] == "mosaic":
            assert row["used"] == 0
            assert row["path"] is None
            assert all("verdict is" in one["reason"] for one in row["inputs"].values())
    service = pyvo.dal.SIA2Service(f"{server}/sia2")
    assert len(service.search(calib_level=4)) == 0
    assert site.contimg("registry", "verify").returncode == 0
    assert site.snakemake("--", target).returncode == 0
    rows = json.loads(site.contimg("tracts", "--json").stdout)
    assert all(row["used"] for row in rows)


def test_over_makes_what_the_sky_has_gone_past_and_no_more(site, made, tmp_path):
    values = yaml.safe_load(site.configfile.read_text())
    values["mosaics"] = MOSAICS | {"make": "over"}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(values))
    over = Site(tmp_path / "site.yaml")
    before = results(site)
    name = next(iter(before))
    over.paths.result(name, "mosaic").unlink()
    over.paths.result(name, "difference").unlink()
    said = over.snakemake("-n")
    assert said.returncode == 0, said.stderr
    tract, _, day = name.rpartition(".")
    assert f"{tract} on day {day}: mosaic" in said.stdout + said.stderr
    assert over.snakemake().returncode == 0
    after = results(site)
    assert [one for one in before if after.get(one) != before[one]] == [name]
    again = over.snakemake()
    assert "Nothing to be done" in again.stdout + again.stderr


def test_the_map_shows_mosaics_in_a_browser_without_a_network(site, server, figure):
    """Tiles of both tracts as one, with Aladin Lite; nothing is asked of another server."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options, service = chromium(
        "--window-size=1000,900",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    )
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, service)
    try:
        driver.get(f"{server}/map")
        until(
            lambda: (
                (text := driver.find_element(By.ID, "said").text) and "tracts," in text and text
            ),
            "the map",
            60,
        )
        number = len(site.paths.with_result("deep"))
        assert driver.find_element(By.ID, "said").text.startswith(f"{number} tracts, ")

        def coloured() -> bool:
            picture = Image.open(io.BytesIO(driver.find_element(By.ID, "map").screenshot_as_png))
            values = np.asarray(picture.convert("RGB")).astype(int)
            # inferno's violet and orange, which nothing else there has
            share = (values.max(axis=2) - values.min(axis=2) > 60).mean()
            return share > 0.1

        until(coloured, "the image", 60)
        asked = {
            json.loads(line["message"])["message"]["params"]["request"]["url"]
            for line in driver.get_log("performance")
            if json.loads(line["message"])["message"]["method"] == "Network.requestWillBeSent"
        }
        assert any("/hips/deep/" in url and "Npix" in url for url in asked)
        own = (server, "data:", "blob:")
        assert [url for url in asked if not url.startswith(own)] == []
    finally:
        driver.quit()


def test_a_tile_at_the_border_of_tracts_is_of_both(site, server):
    found = {}
    for name in site.paths.with_result("hips"):
        folder = site.paths.hips(name)
        for path in folder.glob("Norder6/*/*.fits"):
            found.setdefault(str(path.relative_to(folder)), []).append(path)
    both = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert both
    for name, paths in both.items():
        body = httpx.get(f"{server}/hips/deep/+16.1/{name}").content
        merged = fits.getdata(io.BytesIO(body))
        parts = [fits.getdata(path) for path in paths]
        assert np.array_equal(np.isfinite(merged), np.any(np.isfinite(parts), axis=0))
        only = np.isfinite(parts[0]) & ~np.isfinite(parts[1])
        assert np.array_equal(merged[only], parts[0][only])


def test_what_cannot_be_made_is_said_with_what_to_do_and_made_by_the_next_run(site, made, target):
    """A finder that has no time: the sums are made, the lists are not."""
    name = tract_with_deep(site)
    lists = {"mosaics": {**MOSAICS, "catalogues": ["deep"]}}
    hasty = site.configfile.with_name("hasty.yaml")
    for minutes, status in ((1e-4, 1), (5, 0)):
        lists["mosaics"]["finder_minutes"] = minutes
        hasty.write_text(yaml.safe_dump(yaml.safe_load(site.configfile.read_text()) | lists))
        outcome = Site(hasty).snakemake("--", f"tract/{name}")
        assert outcome.returncode == status, outcome.stderr[-3000:]
        said = site.contimg("status").stdout.replace("\n", " ")
        failed = json.loads(site.contimg("status", "--json").stdout)["mosaics_failed"]
        if status:
            assert len(failed) == 1
            assert failed[0].startswith(f"{name}, catalogue: ")
            assert "mosaics.finder_minutes" in failed[0]
            assert f"{name}, catalogue: " in said
            assert failed[0] in site.contimg("tracts").stdout.splitlines()
        else:
            assert failed == []
            assert f"{name}, catalogue: " not in said
            assert read_json(site.paths.result(name, "catalogue"))["sources"] > 0


def tract_with_deep(site) -> str:
    """The tract whose deep image covers most."""
    deep = {
        name: read_json(site.paths.result(name, "deep")) for name in site.paths.with_result("deep")
    }
    return max(deep, key=lambda name: deep[name]["coverage"])
