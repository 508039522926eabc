"""Another observatory's array: thirty larger dishes in the south, eight subbands of another band,
of another integration time, through the whole workflow. Only its definition, its station list and
the configuration say so."""

import sqlite3
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
import yaml
from astropy.io import fits
from astropy.time import Time

from contimg.config import from_mapping
from contimg.errors import ConfigError
from contimg.paths import Paths
from contimg.simulate import Array, Simulation, simulate_group
from contimg.telescope import DSA110, VARIABLE, read_telescope
from tests.accuracy import measure
from tests.conftest import CALIBRATOR_START, ROOT
from tests.workflow.conftest import make_site

TELESCOPE = {
    "name": "Karoo-30",
    "observatory": "Karoo",
    "authority": "karoo.example",
    "file_names": ["KAROO_30"],
    "casa_name": "MeerKAT",
    "latitude_rad": float(np.radians(-30.72)),
    "longitude_rad": float(np.radians(21.43)),
    "height_m": 1050.0,
    "dish_diameter_m": 6.0,
    "group_s": 240.0,
    "station_prefix": "K",
}
ARRAY = Array(
    telescope="KAROO_30",
    latitude_rad=TELESCOPE["latitude_rad"],
    longitude_rad=TELESCOPE["longitude_rad"],
    height_m=1050.0,
    dish_m=6.0,
    band_hz=(1250e6, 1400e6),
    integration_s=10.0,
    out_of_order=(),
)
SUBBANDS, DISHES = 8, 30
# The same sky is over it when the Earth has turned by the difference of longitudes.
_LATER_S = (DSA110.longitude_rad - ARRAY.longitude_rad) / (2 * np.pi) * 86164.1
CALIBRATOR = (Time(CALIBRATOR_START).datetime + timedelta(seconds=round(_LATER_S))).isoformat()
TARGET = (Time(CALIBRATOR).datetime + timedelta(seconds=480)).isoformat()


@pytest.fixture(scope="module")
def site(tmp_path_factory, sky):
    folder = tmp_path_factory.mktemp("karoo")
    rng = np.random.default_rng(30)
    east_m, north_m = rng.normal(0, 160, (2, DISHES))
    latitude_deg = np.degrees(ARRAY.latitude_rad) + np.degrees(north_m / 6.36e6)
    shrink = np.cos(ARRAY.latitude_rad)
    pd.DataFrame(
        {
            "station": np.arange(1, DISHES + 1),
            "latitude_deg": latitude_deg,
            "longitude_deg": np.degrees(ARRAY.longitude_rad + east_m / 6.38e6 / shrink),
            "height_m": 1050.0 + rng.normal(0, 0.5, DISHES),
            "active_2026_01": 1,
        }
    ).to_csv(folder / "stations.csv", index=False)
    for start, seed in ((CALIBRATOR, 31), (TARGET, 32)):
        sim = Simulation(
            start=start, array=ARRAY, antennas=DISHES, subbands=SUBBANDS, channels=6, seed=seed,
            gain_seed=9,
        )  # fmt: skip
        simulate_group(folder / "incoming", sim, sky, folder / "stations.csv")
    (folder / "telescope.yaml").write_text(yaml.safe_dump(TELESCOPE))
    return make_site(
        folder,
        folder / "incoming",
        catalogues={"stations": str(folder / "stations.csv")},
        ingest={"telescope": "Karoo-30", "expected_subbands": SUBBANDS, "min_subbands": SUBBANDS},
        imaging={"imsize": 1500, "cell_arcsec": 9.0},
    )


@pytest.fixture(scope="module")
def imaged(site):
    """The site after a run, in the environment of this telescope: (paths, outcome)."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(VARIABLE, str(site.configfile.with_name("telescope.yaml")))
        outcome = site.snakemake()
        assert outcome.returncode == 0, outcome.stderr[-4000:]
        folders = yaml.safe_load(site.configfile.read_text())["paths"]
        yield Paths.of(from_mapping({"paths": folders})), site


@pytest.mark.parametrize("command", ["contimg", "snakemake"])
def test_a_process_of_the_dsa_110_refuses_its_configuration(site, command):
    outcome = site.contimg("plan") if command == "contimg" else site.snakemake("-n")
    said = outcome.stdout + outcome.stderr
    assert outcome.returncode != 0
    assert "ingest.telescope is Karoo-30, and this process works for DSA-110" in said
    assert VARIABLE in said
    assert "Traceback" not in said


def test_fluxes_and_positions_are_right(imaged, figure):
    paths, _ = imaged
    truth = paths.incoming / f"truth.{TARGET}.json"
    image, corrected = (paths.image(TARGET, kind) for kind in ("image.fits", "pbcor.fits"))
    measured = measure(image, corrected, truth)
    figure(f"array of 30 dishes in the south: {measured}")
    measured.check(8)


def test_what_is_made_bears_its_name(imaged):
    paths, _ = imaged
    header = fits.getheader(paths.image(TARGET, "pbcor.fits"))
    assert header["TELESCOP"] == header["INSTRUME"] == "Karoo-30"
    height = np.linalg.norm([header[f"OBSGEO-{axis}"] for axis in "XYZ"]) - 6.3726e6
    assert abs(height) < 2e4
    assert header["OBSGEO-Z"] < 0
    # an even dish of 6 m at 1.325 GHz
    width_deg = np.degrees(1.029 * 299792458 / 1.325e9 / 6.0)
    beam = fits.getdata(paths.image(TARGET, "pb.fits")).squeeze()
    across = (beam[:, beam.shape[1] // 2] > 0.5 * beam.max()).sum() * abs(header["CDELT2"])
    assert across == pytest.approx(width_deg, rel=0.02)  # the drift moves it east-west only
    rows = sqlite3.connect(paths.products_db).execute(
        "SELECT DISTINCT facility_name, instrument_name, obs_publisher_did FROM obscore "
        f"WHERE obs_id = '{TARGET}'"
    )
    facility, instrument, did = next(rows)
    assert (facility, instrument) == ("Karoo", "Karoo-30")
    assert did.startswith("ivo://karoo.example/contimg?")


def test_files_of_the_dsa_110_are_refused_there(imaged, incoming):
    paths, site = imaged
    strangers = sorted(incoming.glob(f"{CALIBRATOR_START[:13]}*_sb0[0-7].hdf5"))[:SUBBANDS]
    for path in strangers:
        (paths.incoming / path.name).symlink_to(path)
    try:
        said = site.contimg("incomplete", "--json").stdout
    finally:
        for path in strangers:
            (paths.incoming / path.name).unlink()
    assert "telescope 'OVRO_MMA', expected one of ('KAROO_30',)" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dish_diameter_m": -6}, "dish_diameter_m: Input should be greater than 0"),
        ({"latitude_deg": 3}, "latitude_deg: Extra inputs"),
        ({"longitude_rad": 21.43}, "longitude_rad: Input should be less than"),
        ({"name": "Queen's"}, "name: String should match pattern"),
        ({"group_s": float("inf")}, "group_s: Input should be a finite number"),
        ({"file_names": []}, "file_names: Tuple should have at least 1 item"),
    ],
)
def test_a_definition_that_is_wrong_is_named(tmp_path, change, said):
    file = tmp_path / "telescope.yaml"
    file.write_text(yaml.safe_dump(TELESCOPE | change))
    with pytest.raises(ConfigError, match=said) as error:
        read_telescope(file)
    assert str(file) in str(error.value)


def test_the_example_in_the_docs_is_a_telescope(tmp_path):
    text = (ROOT / "docs" / "other-arrays.md").read_text()
    block = text.split("```yaml\n# telescope.yaml\n")[1].split("```")[0]
    file = tmp_path / "telescope.yaml"
    file.write_text(block)
    assert read_telescope(file) == DSA110
