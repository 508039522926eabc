"""The workflow as its users run it: `snakemake --profile local`, real files, real CASA, real
databases."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.coordinates import EarthLocation
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS

from contimg.calibration import tables as caltables
from contimg.paths import GROUP_PLOTS
from contimg.simulate import Simulation, simulate_group
from contimg.stages.image import image_group
from contimg.store.files import read_json
from contimg.store.parquet import read_about, read_table
from contimg.visibilities.measurement_set import open_table
from tests.accuracy import measure
from tests.conftest import CALIBRATOR_START, DEC_DEG, ROOT, STATIONS, TARGET_START
from tests.workflow.conftest import BAD_START, SMALL_IMAGES, make_site


def rows(database: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True)) as connection:
        return connection.execute(query).fetchall()


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def truth_of(incoming: Path, start: str) -> Path:
    return incoming / f"truth.{start}.json"


def good_groups(incoming: Path, folder: Path) -> Path:
    """The files of the two groups that are whole, by links."""
    good = folder / "incoming"
    good.mkdir()
    for path in incoming.glob("*.hdf5"):
        if path.name < BAD_START:
            (good / path.name).symlink_to(path)
    return good


def test_a_dry_run_lists_what_is_pending_and_changes_nothing(tmp_path, incoming):
    site = make_site(tmp_path / "site", incoming, imaging=SMALL_IMAGES)
    before = listing(tmp_path), listing(incoming)
    outcome = site.snakemake("-n")
    assert outcome.returncode == 0, outcome.stderr
    text = outcome.stdout + outcome.stderr
    for group in (CALIBRATOR_START, TARGET_START):
        assert f"{group}: image" in text
    assert (
        f"not in this run: {BAD_START} collecting: 15 of 16 subbands; missing 07; SubbandError"
        in text
    )
    assert text.count("solve for bandpass") == 1
    plan = site.contimg("plan")
    assert (
        f"{CALIBRATOR_START}  calibrator  to be imaged: calibrates itself on 3C454.3" in plan.stdout
    )
    assert (
        f"{TARGET_START}  target  to be imaged: calibrated by {CALIBRATOR_START}, solved in "
        "this run" in plan.stdout
    )
    assert json.loads(site.contimg("plan", "--json").stdout)[1]["depends_on"] == CALIBRATOR_START
    assert (listing(tmp_path), listing(incoming)) == before
    assert not any(root.exists() for root in site.paths.staging_roots().values())


def test_a_target_alone_waits_and_costs_nothing(tmp_path, incoming):
    alone = tmp_path / "incoming"
    alone.mkdir()
    for path in incoming.glob("*.hdf5"):
        if TARGET_START <= path.name < BAD_START:
            (alone / path.name).symlink_to(path)
    site = make_site(tmp_path / "site", alone)
    outcome = site.snakemake()
    assert outcome.returncode == 0
    assert "waits for calibration: no calibration set is known" in outcome.stderr
    assert not site.paths.products.exists()
    assert "waiting: waits for calibration" in site.contimg("plan").stdout


def test_a_missing_subband_is_named(tmp_path, incoming):
    partial = tmp_path / "incoming"
    partial.mkdir()
    for path in incoming.glob("*.hdf5"):
        if path.name < TARGET_START and "_sb11" not in path.name:
            (partial / path.name).symlink_to(path)
    site = make_site(tmp_path / "site", partial)
    assert "15 of 16 subbands; missing 11" in site.contimg("plan").stdout
    enough = make_site(
        tmp_path / "enough", partial, ingest={"min_subbands": 15, "collecting_timeout_s": 1e-3}
    )
    assert "subbands 11 are missing and will be flagged" in enough.contimg("plan").stdout


def test_good_groups_are_imaged_and_the_bad_one_waits_by_name(first_run, incoming):
    """A truncated file does not count; its group is not begun, and says what it waits for."""
    site, outcome = first_run
    text = outcome.stdout + outcome.stderr
    assert outcome.returncode == 0
    assert (
        f"not in this run: {BAD_START} collecting: 15 of 16 subbands; missing 07; SubbandError: "
        in text
    )
    states = dict(rows(site.paths.ingest_db, "SELECT group_id, state FROM ingest_queue"))
    assert states == {
        CALIBRATOR_START: "completed",
        TARGET_START: "completed",
        BAD_START: "collecting",
    }
    assert not site.paths.ms(BAD_START).exists()
    bad = rows(
        site.paths.ingest_db,
        "SELECT subband_idx, reason FROM subband_files WHERE reason IS NOT NULL",
    )
    assert [subband for subband, _ in bad] == [7]
    assert "_sb07.hdf5: truncated (" in bad[0][1]
    (row,) = json.loads(site.contimg("incomplete", "--json").stdout)
    assert (row["group"], row["missing"], row["state"]) == (BAD_START, [7], "collecting")
    assert "truncated" in row["reason"]
    assert BAD_START in site.contimg("incomplete").stdout
    why = json.loads(site.contimg("why", BAD_START, "--json").stdout)
    assert why["missing_subbands"] == [7]
    assert ["truncated" in (f["reason"] or "") for f in why["files"]].count(True) == 1
    assert "truncated" in site.contimg("why", BAD_START).stdout


def test_the_queue_tells_a_groups_story(first_run):
    site, _ = first_run
    why = json.loads(site.contimg("why", TARGET_START, "--json").stdout)
    assert [h["state_to"] for h in why["history"]] == [
        "pending",
        "in_progress",
        "processing_fresh",
        "completed",
    ]
    assert why["stage"] == "index"
    assert why["checkpoint_path"] == str(site.paths.result(TARGET_START, "index"))
    assert {Path(log).parent.name for log in why["logs"]} >= {"convert", "image", "index"}
    shown = site.contimg("why", TARGET_START).stdout
    assert "processing_fresh" in shown
    assert "_sb07.hdf5" in shown
    status = json.loads(site.contimg("status", "--json").stdout)
    assert status["counts"] == {"completed": 2, "collecting": 1}
    assert status["imaged_last_hour"] == 2
    assert (status["behind_s"], status["running"], status["watcher"]) == (0, [], None)
    text = site.contimg("status").stdout
    assert "3 groups: 1 collecting, 2 completed" in text
    assert "up to date; 3 groups came in the last hour, 2 were imaged" in text


def test_every_database_has_its_rows(first_run):
    site, _ = first_run
    paths = site.paths
    products = paths.products_db
    assert (
        rows(products, "SELECT status, stage, cal_applied FROM ms_index")
        == [("ok", "index", CALIBRATOR_START)] * 2
    )
    images = rows(products, "SELECT type, path, noise_jy, beam_major_arcsec, pbcor FROM images")
    assert sorted(i[0] for i in images) == sorted(["image", "pbcor", "pb", "residual"] * 2)
    for kind, path, noise_jy, beam, pbcor in images:
        assert Path(path).exists()
        assert 0 < noise_jy < 0.1
        assert 30 < beam < 120
        assert pbcor == (kind == "pbcor")
    artifacts = rows(products, "SELECT name, path FROM qa_artifacts")
    assert {name for name, _ in artifacts} == {*GROUP_PLOTS, "calibration"}
    assert all(Path(path).stat().st_size > 2000 for _, path in artifacts)
    tables = rows(
        paths.registry_db,
        "SELECT table_type, path, status, cal_field FROM caltables ORDER BY order_index",
    )
    assert [(kind, status, field) for kind, _, status, field in tables] == [
        ("B", "active", "3C454.3"),
        ("G", "active", "3C454.3"),
    ]
    assert all(Path(path).is_dir() for _, path, _, _ in tables)
    gains = caltables.read(paths.caltable(CALIBRATOR_START, "G"))
    refant = read_json(paths.result(CALIBRATOR_START, "solve"))["refant"]
    of_refant = gains.gain[gains.antenna == int(refant) - 1]  # name = number + 1
    assert not gains.flags[gains.antenna == int(refant) - 1].any()
    assert np.abs(np.angle(of_refant)).max() < 1e-6
    performance = rows(
        paths.ingest_db,
        "SELECT load_time, phase_time, write_time, total_time, writer_type FROM "
        "performance_metrics",
    )
    assert len(performance) == 2
    assert all(min(p[:4]) > 0 and p[4] == "parallel-subband" for p in performance)
    (seconds,) = rows(
        paths.ingest_db, f"SELECT stages FROM performance_metrics WHERE group_id = '{TARGET_START}'"
    )[0]
    assert json.loads(seconds).keys() >= {
        "convert",
        "concat",
        "prepare",
        "apply",
        "image",
        "photometry",
        "qa",
        "index",
    }
    files = rows(
        paths.ingest_db, "SELECT count(*), sum(checked), sum(reason IS NULL) FROM subband_files"
    )
    assert files == [(48, 48, 47)]


def test_positions_and_fluxes_are_right(first_run, incoming, figure):
    paths = first_run[0].paths
    found = measure(
        paths.image(TARGET_START, "image.fits"),
        paths.image(TARGET_START, "pbcor.fits"),
        truth_of(incoming, TARGET_START),
    )
    figure(f"simulated target, wgridder: {found}")
    found.check(least=8)
    dead = read_json(paths.result(TARGET_START, "prepare"))["dead_antennas"]
    simulated = json.loads(truth_of(incoming, TARGET_START).read_text())["simulation"]["dead"]
    assert dead == [str(d) for d in simulated]


def test_every_catalogue_source_is_measured(first_run, incoming, figure):
    """All that are in the beam, at their fluxes."""
    paths = first_run[0].paths
    table, said = (f(paths.photometry(TARGET_START)) for f in (read_table, read_about))
    truth = json.loads(truth_of(incoming, TARGET_START).read_text())["sources"]
    true_jy = {
        one["name"]: one["flux"] * (said["freq_hz"] / 1.4e9) ** one["alpha"] for one in truth
    }
    table = table[table.source.isin(true_jy)]
    pull = (table.flux_jy - table.source.map(true_jy)) / np.hypot(
        table.error_jy, 0.01 * table.flux_jy
    )
    figure(f"{len(table)} sources measured; pulls {pull.mean():.2f} +- {pull.std():.2f}")
    assert len(table) > 30
    assert abs(pull.mean()) < 0.5
    assert 0.5 < pull.std() < 1.5
    always = ["flux_jy", "error_jy", "noise_jy", "beam", "smearing", "peak_jy"]
    assert np.isfinite(table[always]).all().all()


@pytest.mark.long
def test_tclean_gives_the_same_sky(first_run, incoming, tmp_path, figure):
    site, _ = first_run
    imaging = site.config.imaging.model_copy(update={"backend": "tclean"})
    config = site.config.model_copy(
        update={
            "imaging": imaging,
            "paths": site.config.paths.model_copy(update={"products": tmp_path}),
        }
    )
    converted, chosen = (
        read_json(site.paths.result(TARGET_START, s)) for s in ("convert", "caltables")
    )
    result = image_group(
        site.paths.ms(TARGET_START),
        TARGET_START,
        config,
        converted,
        chosen,
        2,
        tmp_path / "casa.log",
    )
    files = (Path(result["images"][suffix]) for suffix in ("image.fits", "pbcor.fits"))
    found = measure(*files, truth_of(incoming, TARGET_START))
    figure(f"simulated target, tclean: {found}")
    found.check(least=8)
    wgridder = read_json(site.paths.result(TARGET_START, "image"))
    assert result["beam_major_arcsec"] == pytest.approx(wgridder["beam_major_arcsec"], rel=0.1)


def test_fits_files_say_what_they_are(first_run):
    paths = first_run[0].paths
    with fits.open(paths.image(TARGET_START, "pbcor.fits"), checksum=True) as hdus:
        hdus.verify("exception")
        header, data = hdus[0].header, hdus[0].data
    assert header["BUNIT"] == "Jy/beam"
    assert header["RADESYS"] == "ICRS"
    assert header["CALSET"] == CALIBRATOR_START
    assert header["SETSCAL"] == "sky catalogue (variable source)"
    assert header["FLUXSCAL"].endswith("catalogue sources")
    assert header["NSUBBAND"] == 16
    assert header["TELESCOP"] == "DSA-110"
    assert header["CRVAL3"] == pytest.approx(1.405e9, rel=2e-3)
    assert Time(header["DATE-OBS"]).isot[:19] == TARGET_START
    assert (Time(header["DATE-END"]) - Time(header["DATE-OBS"])).sec == pytest.approx(
        309.24, abs=0.01
    )
    assert header["EXPTIME"] < 309  # the burst's integration is gone
    assert 0.5 < header["BMAJ"] * 60 < 2
    wcs = WCS(header).celestial
    centre = wcs.wcs_pix2world(900, 900, 0)
    assert centre == pytest.approx([header["CRVAL1"], header["CRVAL2"]])
    # Aberration: pixels are a little more or less than 8 arcsec of sky.
    assert header["CDELT2"] * 3600 == pytest.approx(8, rel=1.1e-4)
    assert header["CDELT2"] * 3600 != 8
    # What CASA, CARTA, astropy and the Transients Pipeline look for: place of the telescope,
    # frequency, times, beam, unit.
    site = EarthLocation.from_geocentric(*(header[f"OBSGEO-{axis}"] for axis in "XYZ"), unit="m")
    assert (site.lon.deg, site.lat.deg) == pytest.approx((-118.283, 37.233), abs=0.01)
    assert WCS(header).wcs.restfrq == header["CRVAL3"] == header["RESTFRQ"]
    assert WCS(header).wcs.obsgeo[:3] == pytest.approx([header[f"OBSGEO-{axis}"] for axis in "XYZ"])
    assert (Time(header["END_UTC"]) - Time(header["DATE-OBS"])).sec == pytest.approx(
        header["DURATION"], abs=1e-3
    )
    assert header["DURATION"] == pytest.approx(309.24, abs=0.01)
    expected = {
        "CTYPE1": "RA---SIN",
        "CTYPE2": "DEC--SIN",
        "CTYPE3": "FREQ",
        "CTYPE4": "STOKES",
        "CUNIT3": "Hz",
        "TIMESYS": "UTC",
        "SPECSYS": "TOPOCENT",
        "OBSERVER": "DSA-110",
        "BTYPE": "Intensity",
        "EQUINOX": 2000.0,
        "SETSTAT": "active",
        "VERDICT": "good",
        "QUALITY": "SCIENCE",
        "PUBLISH": True,
        "ANTENNAS": 52,
    }
    assert {key: header[key] for key in expected} == expected
    assert {
        "BMAJ",
        "BMIN",
        "BPA",
        "CRPIX1",
        "CRPIX2",
        "CDELT3",
        "MJD-OBS",
        "INSTRUME",
        "ORIGIN",
        "COMMIT",
        "SKYCAT",
        "CALLIST",
        "STATIONS",
        "DATAFRAC",
    } <= set(header)
    assert np.isnan(data[0, 0, 0, 0])
    pb = fits.getdata(paths.image(TARGET_START, "pb.fits")).squeeze()
    assert np.nanmin(pb[np.isfinite(data.squeeze())]) >= 0.2


def test_casa_opens_the_images(first_run):
    from casacore import images

    paths = first_run[0].paths
    opened = images.image(str(paths.image(TARGET_START, "image")))
    assert opened.unit() == "Jy/beam"
    assert opened.info()["imageinfo"]["restoringbeam"]["major"]["unit"] == "arcsec"
    as_fits = fits.getdata(paths.image(TARGET_START, "image.fits")).squeeze()
    assert np.array_equal(opened.getdata().squeeze(), as_fits)


def test_the_second_run_has_nothing_to_do(first_run):
    site, _ = first_run
    before = rows(site.paths.ingest_db, "SELECT * FROM ingest_queue ORDER BY group_id")
    files = listing(site.paths.products) | listing(site.paths.state)
    assert site.snakemake("-n").returncode == 0
    assert site.contimg("plan").returncode == 0
    assert listing(site.paths.products) | listing(site.paths.state) == files
    again = site.snakemake()
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr
    assert f"not in this run: {BAD_START} collecting" in again.stdout + again.stderr
    assert rows(site.paths.ingest_db, "SELECT * FROM ingest_queue ORDER BY group_id") == before
    table = json.loads(site.contimg("status", "--json").stdout)["groups"]
    assert [row["state"] for row in table] == ["completed", "completed", "collecting"]
    assert table[1]["catalogue"]["flux_ratio"] == pytest.approx(1, abs=0.03)


def test_asking_again_for_one_stage_leaves_no_double_rows(first_run):
    site, _ = first_run
    image = str(site.paths.result(TARGET_START, "index"))
    before = rows(site.paths.products_db, "SELECT path, type FROM images ORDER BY path")
    outcome = site.snakemake("--forcerun", "qa", "--", image)
    assert outcome.returncode == 0, outcome.stderr
    assert rows(site.paths.products_db, "SELECT path, type FROM images ORDER BY path") == before
    assert rows(
        site.paths.ingest_db, f"SELECT state FROM ingest_queue WHERE group_id = '{TARGET_START}'"
    ) == [("completed",)]


def jobs_of(pid: int) -> list[int]:
    """Living processes that a Snakemake has started, by what their environment says."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != pid:
            try:
                if f"CONTIMG_RUN_PID={pid}\0".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.long
def test_killed_runs_go_on_to_the_same_image(first_run, incoming, tmp_path):
    """kill -9 in three stages, in turn; a second run beside a living one is refused."""
    good = good_groups(incoming, tmp_path)
    site = make_site(tmp_path / "site", good, imaging=SMALL_IMAGES)
    for group, stage in (
        (CALIBRATOR_START, "convert"),
        (CALIBRATOR_START, "prepare"),
        (CALIBRATOR_START, "register"),
    ):
        with (tmp_path / "run.log").open("a") as log:
            running = subprocess.Popen(site.command(), cwd=ROOT, stdout=log, stderr=log)
        deadline = time.time() + 300
        while not site.paths.result(group, stage).exists():
            assert running.poll() is None, (tmp_path / "run.log").read_text()[-3000:]
            assert time.time() < deadline
            time.sleep(0.05)
        if stage == "prepare":
            beside = site.snakemake()
            assert beside.returncode != 0
            assert (
                "another run (local) is working on this state folder"
                in beside.stdout + beside.stderr
            )
            assert f"not in this run: {group} running: run " in beside.stdout + beside.stderr
            by_name = site.snakemake("--", f"group/{group}")
            assert by_name.returncode != 0
            assert f"group {group} cannot be imaged now: run " in by_name.stdout + by_name.stderr
        while not jobs_of(running.pid):  # into the next stage
            time.sleep(0.05)
        time.sleep(1.0)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        deadline = time.time() + 20
        while jobs_of(running.pid):
            assert time.time() < deadline, "jobs outlive their run"
            time.sleep(0.2)
    last = site.snakemake()
    assert last.returncode == 0, last.stderr[-3000:]
    assert [s for (s,) in rows(site.paths.ingest_db, "SELECT state FROM ingest_queue")] == [
        "completed"
    ] * 2
    with open_table(site.paths.ms(CALIBRATOR_START)) as table:
        assert {"MODEL_DATA", "CORRECTED_DATA"} <= set(table.colnames())
    for suffix in ("image.fits", "pbcor.fits"):
        whole, resumed = (
            fits.getdata(s.paths.image(TARGET_START, suffix)) for s in (first_run[0], site)
        )
        assert np.nanmax(np.abs(whole - resumed)) < 1e-5 * np.nanmax(whole)
    assert not [p for p in listing(site.paths.products) if "partial" in p]
    for root in site.paths.staging_roots().values():
        assert not root.exists() or not any(root.iterdir())


def small_group(folder: Path, sky, **options) -> Simulation:
    sim = Simulation(start=CALIBRATOR_START, antennas=8, channels=1, integrations=4, **options)
    simulate_group(folder, sim, sky, STATIONS)
    return sim


def test_a_group_waits_for_a_good_copy_of_a_file(tmp_path, sky):
    folder, mended = tmp_path / "incoming", tmp_path / "mended"
    sim = small_group(folder, sky, truncated=(7,))
    simulate_group(mended, replace(sim, truncated=()), sky, STATIONS)
    site = make_site(tmp_path / "site", folder)
    convert = str(site.paths.result(CALIBRATOR_START, "convert"))
    refused = site.snakemake("--", convert)  # asked by name, and still not guessed at
    assert refused.returncode == 1
    assert (
        "cannot be imaged now: 15 of 16 subbands; missing 07; SubbandError"
        in refused.stdout + refused.stderr
    )
    (bad,) = folder.glob("*_sb07.hdf5")
    shutil.copy(mended / bad.name, bad)
    assert "to be imaged" in site.contimg("plan").stdout
    assert site.snakemake("--", convert).returncode == 0


def test_data_that_cannot_be_used_fail_at_once_until_an_operator_or_another_file_comes(
    tmp_path, sky
):
    """All is well with the file but its data: only the conversion can see that."""
    folder, mended = tmp_path / "incoming", tmp_path / "mended"
    sim = small_group(folder, sky)
    simulate_group(mended, sim, sky, STATIONS)
    for path in folder.glob("*.hdf5"):
        with h5py.File(path, "r+") as file:
            file["Data/visdata"][...] = 0
    site = make_site(tmp_path / "site", folder)
    concat = str(site.paths.result(CALIBRATOR_START, "concat"))
    assert site.snakemake("--", concat).returncode == 1
    assert "failed: convert: InputError" in site.contimg("plan").stdout
    shown = site.contimg("status").stdout
    assert "1 failed" in shown
    assert "every visibility is zero" in shown
    assert site.contimg("retry", CALIBRATOR_START).returncode == 0
    assert "to be imaged" in site.contimg("plan").stdout
    refused = site.contimg("retry", CALIBRATOR_START)
    assert refused.returncode == 1
    assert "is pending already" in refused.stderr
    assert site.snakemake("--", concat).returncode == 1
    assert "pending again" in site.contimg("retry", "--all").stdout
    assert site.snakemake("--", concat).returncode == 1
    for path in mended.glob("*.hdf5"):
        shutil.copy(path, folder / path.name)
    assert "to be imaged" in site.contimg("plan").stdout
    assert site.snakemake("--", concat).returncode == 0


def test_a_group_of_bad_files_fails_in_words_when_its_time_is_up(tmp_path, sky):
    folder = tmp_path / "incoming"
    small_group(folder, sky, truncated=tuple(range(16)))
    site = make_site(tmp_path / "site", folder)
    assert "incomplete: 0 of 16 subbands; missing 00, 01" in site.contimg("plan").stdout
    site = make_site(tmp_path / "site", folder, ingest={"collecting_timeout_s": 0.1})
    assert site.snakemake().returncode == 0
    (row,) = json.loads(site.contimg("status", "--json").stdout)["groups"]
    assert row["state"] == "failed"
    assert row["error"].startswith("after 0.1 s only 0 of 16 subbands; missing 00")
    assert row["error"].count("truncated (") == 16


def test_reprocess_from_a_stage_repeats_that_and_what_follows(first_run):
    site, _ = first_run
    times = {
        s: site.paths.result(TARGET_START, s).stat().st_mtime_ns
        for s in ("prepare", "apply", "image", "qa")
    }
    said = site.contimg("reprocess", TARGET_START, "--from", "qa")
    assert said.returncode == 0, said.stderr
    assert "pending again, from qa on" in said.stdout
    assert f"{TARGET_START}  target  to be imaged" in site.contimg("plan").stdout
    outcome = site.snakemake()
    assert outcome.returncode == 0, outcome.stderr
    assert f"group {TARGET_START} resumes after photometry" in outcome.stderr
    again = {s: site.paths.result(TARGET_START, s).stat().st_mtime_ns for s in times}
    assert [s for s in times if again[s] != times[s]] == ["qa"]
    wrong = site.contimg("reprocess", TARGET_START, "--from", "cleaning")
    assert wrong.returncode == 1
    assert (
        "has no stage cleaning; it goes through convert, concat, prepare, caltables" in wrong.stderr
    )
    assert rows(
        site.paths.ingest_db, f"SELECT state FROM ingest_queue WHERE group_id = '{TARGET_START}'"
    ) == [("completed",)]


def test_a_wrong_config_is_refused_in_words(tmp_path, incoming):
    site = make_site(tmp_path / "site", incoming, imaging={"imsiz": 3})
    outcome = site.snakemake("-n")
    assert outcome.returncode != 0
    assert "imaging.imsiz" in outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_getting_the_nvss_without_a_network_says_so(tmp_path, incoming):
    site = make_site(tmp_path / "site", incoming)
    outcome = site.contimg(
        "catalog", str(tmp_path / "nvss.csv"), "--ra", "10", "--dec", "20", "--radius", "0.1"
    )
    if outcome.returncode == 0:
        pytest.skip("NOT TESTED offline: this machine reaches VizieR")
    assert "VizieR cannot be reached" in outcome.stderr
    assert not (tmp_path / "nvss.csv").exists()


@pytest.mark.long
def test_the_independent_sample_comes_out_right(sample, tmp_path, figure):
    """Files, sky and gains that none of our code wrote, with each backend."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for path in sample.glob("*/*.hdf5"):
        (incoming / path.name).symlink_to(path)
    site = make_site(tmp_path / "site", incoming, imaging={"imsize": 4096})
    outcome = site.snakemake()
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    target, truth = "2026-01-25T22:41:32", sample / "target" / "truth.json"
    paths = site.paths
    wgridder = measure(paths.image(target, "image.fits"), paths.image(target, "pbcor.fits"), truth)
    figure(f"independent sample, wgridder: {wgridder}")
    wgridder.check(least=12)
    for stage in ("image", "qa", "index"):
        paths.result(target, stage).unlink()
    site = make_site(tmp_path / "site", incoming, imaging={"imsize": 4096, "backend": "tclean"})
    outcome = site.snakemake("--", str(paths.result(target, "image")))
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    tclean = measure(paths.image(target, "image.fits"), paths.image(target, "pbcor.fits"), truth)
    figure(f"independent sample, tclean: {tclean}")
    assert fits.getheader(paths.image(target, "pbcor.fits"))["IMAGER"] == "tclean"
    tclean.check(least=12)


@pytest.mark.long
def test_two_subbands_go_through_the_pyuvdata_writer(tmp_path, sky):
    """`auto` takes pyuvdata for so few; nothing stays in staging."""
    folder = tmp_path / "incoming"
    small_group(folder, sky, subbands=2)
    ingest = {"expected_subbands": 2, "min_subbands": 2}
    site = make_site(tmp_path / "site", folder, ingest=ingest)
    outcome = site.snakemake("--", str(site.paths.result(CALIBRATOR_START, "prepare")))
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    converted = json.loads(site.paths.result(CALIBRATOR_START, "convert").read_text())
    assert (converted["writer"], converted["subbands"]) == ("pyuvdata", [0, 1])
    checks = json.loads(site.paths.result(CALIBRATOR_START, "prepare").read_text())["checks"]
    assert (checks["channels"], checks["integrations"]) == (2, 4)
    assert not any(root.exists() for root in site.paths.staging_roots().values())


def test_a_set_that_fails_its_gate_is_registered_as_failed_and_never_applied(tmp_path, incoming):
    good = good_groups(incoming, tmp_path)
    site = make_site(tmp_path / "site", good, calibration={"min_median_snr": 1e6})
    assert site.snakemake().returncode == 1
    (calset,) = json.loads(site.contimg("registry", "list", "--json").stdout)
    assert (calset["set"], calset["status"]) == (CALIBRATOR_START, "failed")
    assert "B: median_snr is" in calset["notes"]
    assert "failed" in site.contimg("registry", "list").stdout
    assert (
        json.loads(site.contimg("registry", "show", CALIBRATOR_START).stdout)["tables"][0][
            "quality"
        ]["antennas"]
        > 20
    )
    queue = rows(site.paths.ingest_db, "SELECT state, retry_count FROM ingest_queue")
    assert queue == [("pending", 0)] * 2
    plan = site.contimg("plan").stdout
    assert (
        f"{CALIBRATOR_START}  calibrator  waiting: waits for calibration: no calibration set is "
        "known; its own set " in plan
    )
    assert "failed: B: median_snr is" in plan
    assert "1 sets failed or were retired" in plan
    assert not list(site.paths.products.glob("results/*.apply.json"))
    again = site.snakemake()
    assert again.returncode == 0
    assert "2 waiting" in again.stdout + again.stderr
    assert site.contimg("registry", "verify").returncode == 0
    assert site.contimg("registry", "retire", "nobody", "--reason", "x").returncode == 1


@pytest.mark.long
def test_fluxes_are_right_though_the_calibrator_is_a_degree_off_axis(
    tmp_path, sky, compact_stations, figure
):
    """Through the whole workflow, with another group's tables."""
    incoming = tmp_path / "incoming"
    common = {"dec_deg": DEC_DEG - 1, "channels": 4, "gain_seed": 3, "stations": compact_stations}
    for start, seed in ((CALIBRATOR_START, 31), (TARGET_START, 32)):
        simulate_group(incoming, Simulation(start=start, seed=seed, **common), sky, STATIONS)
    site = make_site(tmp_path / "site", incoming, imaging=SMALL_IMAGES)
    outcome = site.snakemake("--", str(site.paths.result(TARGET_START, "index")))
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    solved = read_json(site.paths.result(CALIBRATOR_START, "solve"))
    assert 0.5 < solved["mean_beam"] < 0.7
    assert not site.paths.result(CALIBRATOR_START, "image").exists()
    files = (site.paths.image(TARGET_START, suffix) for suffix in ("image.fits", "pbcor.fits"))
    found = measure(*files, truth_of(incoming, TARGET_START))
    fit = read_json(site.paths.result(TARGET_START, "apply"))["model_fit"]
    figure(
        f"calibrator 1 deg off axis, through the workflow: {found}; catalogue's amplitude in the "
        f"visibilities {fit:.4f}"
    )
    found.check(least=6)
    assert np.median(found.ratio) == pytest.approx(1, abs=0.02)


@pytest.mark.long
def test_quick_looks_from_fast_calibration_never_end_up_in_science(tmp_path, incoming):
    good = good_groups(incoming, tmp_path)
    site = make_site(tmp_path / "site", good)
    outcome = site.contimg("run", "--quick", "--fast", "--timebin", "60", TARGET_START)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    paths = site.paths
    header = fits.getheader(paths.image(TARGET_START, "pbcor.fits", quick=True))
    assert (header["QUALITY"], header["CALSET"]) == ("NON_SCIENCE", f"{CALIBRATOR_START}.fast")
    assert paths.caltable(f"{CALIBRATOR_START}.fast", "B").is_dir()
    assert {kind for (kind,) in rows(paths.products_db, "SELECT type FROM images")} == {
        f"quick_{kind}" for kind in ("image", "pbcor", "pb", "residual")
    }
    assert rows(paths.registry_db, "SELECT DISTINCT set_name, science FROM caltables") == [
        (f"{CALIBRATOR_START}.fast", 0)
    ]
    assert "done: imaged and indexed, with another configuration" in site.contimg("plan").stdout
    assert site.contimg("reprocess", TARGET_START, "--from", "apply").returncode == 0
    applied = str(paths.result(TARGET_START, "apply"))
    outcome = site.snakemake("--", applied)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert read_json(paths.result(TARGET_START, "apply"))["set_name"] == CALIBRATOR_START
    assert site.contimg("registry", "stale").returncode == 0
    assert site.contimg("run", "--fast", "--uvrange", "long ones").returncode == 1
