"""Every file name of the project, in one place.

Each method works with a real group id and with Snakemake's ``{group}`` alike, so rules and library
agree.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from contimg.config import Config

GROUP_PATTERN = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
TRACT_PATTERN = r"[+-]\d\d\.\d_\d\d\d"
SDAY_PATTERN = r"\d{4,5}"
MOSAIC_PATTERN = rf"{TRACT_PATTERN}(\.{SDAY_PATTERN})?"  # all days, or one of them
DATE_PATTERN = r"\d{4}-\d\d-\d\d"
LANES = ("local", "cluster")  # of each one run at a time works on a state folder; both may at once
RAW_PATTERN = "*_sb??.hdf5"
CALTABLE_SUFFIXES = {"K": "kcal", "B": "bpcal", "G": "gcal"}
FAST_SUFFIX = ".fast"
QUICK_MARK = ".quick"
MOSAIC_ENDINGS = ("fits", "weight.fits")  # image, weights
CASA_IMAGES = ("image", "image.pbcor", "pb", "residual", "model", "psf")
FITS_IMAGES = ("image.fits", "pbcor.fits", "pb.fits")
SMEARING_FITS = "smearing.fits"
COMPONENTS_FITS = "components.fits"  # what photometry needs of an image beside its pixels
SLANTED_FITS = "slanted.fits"  # imaging.slanted_fits
IMAGE_SUFFIXES = (*CASA_IMAGES, *FITS_IMAGES, SMEARING_FITS, COMPONENTS_FITS, SLANTED_FITS)
REPORTED_PLOTS = ("image", "catalogue", "uv", "flags")  # in `snakemake --report`
OTHER_PLOTS = ("thumbnail", "residual", "beam", "spectra", "bandpass", "gains", "refinement")
GROUP_PLOTS = REPORTED_PLOTS + OTHER_PLOTS
TMPFS = Path("/dev/shm")
CHANGING_MARK = "contimg_changing"  # in a Measurement Set's folder while its columns change


@dataclass(frozen=True)
class Paths:
    """Names of everything that is read and written under the configured folders."""

    incoming: Path
    products: Path
    state: Path
    databases: Path

    @classmethod
    def of(cls, config: Config) -> "Paths":
        """The names under the configured folders."""
        folders = config.paths
        return cls(
            folders.incoming, folders.products, folders.state, folders.databases or folders.state
        )

    # -- products
    # ------------------------------------------------------------------------------------------
    def ms(self, group: str) -> Path:
        """Full-band Measurement Set."""
        return self.products / "ms" / f"{group}.ms"

    def flag_versions(self, group: str) -> Path:
        """CASA's flag versions of a Measurement Set."""
        return self.products / "ms" / f"{group}.ms.flagversions"

    def caltable(self, set_name: str, kind: str) -> Path:
        """Calibration table of one kind (K, B or G) of a set: `set_name(group, fast)`."""
        return self.products / "caltables" / f"{set_name}.{CALTABLE_SUFFIXES[kind]}"

    def field_gains(self, group: str) -> Path:
        """A group's own gains, for no other (`calibration.refine`)."""
        return self.products / "caltables" / f"{group}.field.gcal"

    def image(self, group: str, suffix: str, quick: bool = False) -> Path:
        """Image product, by its suffix."""
        return self.products / "images" / f"{group}{QUICK_MARK if quick else ''}.{suffix}"

    @property
    def beams(self) -> Path:
        """Fitted primary beams."""
        return self.products / "beams"

    def beam(self, app_dec_deg: float, first: str, last: str) -> Path:
        """A beam fitted to the images of a strip from one group to another."""
        return self.beams / f"{app_dec_deg:+05.1f}_{first}_{last}.fits"

    def instrument(self, day: str, ending: str) -> Path:
        """What the groups of a day say of the instrument (json), and pictures (png)."""
        return self.products / "instrument" / f"{day}.{ending}"

    def instrument_days(self) -> list[str]:
        """Days that `instrument` knows, the latest first."""
        return sorted(
            (path.stem for path in self.instrument("x", "json").parent.glob("*.json")), reverse=True
        )

    def photometry(self, group: str) -> Path:
        """Fluxes of all known sources in a group's image."""
        return self.products / "photometry" / f"{group}.parquet"

    def unlisted(self, group: str) -> Path:
        """What a group's image shows and the reference does not have."""
        return self.products / "photometry" / "unlisted" / f"{group}.parquet"

    def reference(self, version: str) -> Path:
        """A version of a strip's reference catalogue: which sources are measured."""
        return self.products / "photometry" / "reference" / f"{version}.parquet"

    def references(self, strip: str = "") -> list[str]:
        """Versions that are there, of one strip or of all; the last one last."""
        found = self.reference("x").parent.glob(f"{strip or '*'}.v*.parquet")
        names = [path.name.removesuffix(".parquet") for path in found]
        return sorted(names, key=lambda name: (name[:5], int(name.rpartition(".v")[2])))

    def measured(self) -> list[str]:
        """Groups whose sources were measured, in order."""
        return sorted(path.stem for path in self.photometry("x").parent.glob("*T*.parquet"))

    def epoch(self, strip: str, day: int) -> Path:
        """A sidereal day of a strip: a row a source."""
        return self.products / "lightcurves" / strip / "days" / f"{day}.parquet"

    def means(self, strip: str) -> Path:
        """A strip's own mean fluxes, to which its days are scaled."""
        return self.products / "lightcurves" / strip / "means.parquet"

    def lightcurves(self, strip: str, month: int) -> Path:
        """Thirty sidereal days of a strip, by source."""
        return self.products / "lightcurves" / strip / "months" / f"{month:05d}.parquet"

    def lightcurve_months(self, strip: str) -> list[Path]:
        """Those that are there, in order."""
        return sorted(self.lightcurves(strip, 0).parent.glob("*.parquet"))

    def mosaic(self, tract: str, day: int | str, ending: str = "fits") -> Path:
        """A tract on a sidereal day, or in all (`deep`): image (fits), weights (weight.fits)."""
        return self.products / "mosaics" / tract / f"{day}.{ending}"

    def mosaic_files(self, tract: str, day: int | str) -> dict[str, Path]:
        """Image and weights of a tract on a sidereal day, or in all, by ending."""
        return {ending: self.mosaic(tract, day, ending) for ending in MOSAIC_ENDINGS}

    def mosaic_week(self, tract: str, week: int) -> Path:
        """Seven sidereal days of a tract as one: their list (JSON), and beside it the sum."""
        return self.products / "mosaics" / tract / "weeks" / f"{week}.json"

    def hips(self, mosaic: str) -> Path:
        """The map of a mosaic (`TRACT`, `TRACT.SDAY`) for sky browsers, a folder."""
        return self.products / "hips" / mosaic

    def mosaic_beam(self, strip: str) -> Path:
        """The restoring beam of a strip's mosaics (JSON)."""
        return self.products / "mosaics" / f"{strip}.beam.json"

    def quicklook(self, group: str, ending: str) -> Path:
        """Image (fits) and picture (png) of `contimg quicklook`."""
        return self.products / "quicklooks" / f"{group}.{ending}"

    def result(self, group: str, stage: str) -> Path:
        """JSON result of a finished stage."""
        return self.products / "results" / f"{group}.{stage}.json"

    def with_result(self, stage: str, begin: str = "") -> list[str]:
        """Groups that have a stage's result, of those whose ids begin so; in order."""
        ending = f".{stage}.json"
        found = self.result("x", stage).parent.glob(f"{begin}*{ending}")
        return sorted(path.name.removesuffix(ending) for path in found)

    def qa(self, group: str, name: str) -> Path:
        """QA plot."""
        return self.products / "qa" / group / f"{name}.png"

    def day(self, date: str) -> Path:
        """Plot of all images of a day."""
        return self.products / "qa" / "days" / f"{date}.png"

    def log(self, group: str, stage: str) -> Path:
        """Log of a stage."""
        return self.products / "logs" / stage / f"{group}.log"

    def error(self, group: str) -> Path:
        """What the last failed attempt at a group said (JSON); removed when a stage of the group
        succeeds."""
        return self.products / "logs" / "errors" / f"{group}.json"

    def config(self, digest: str) -> Path:
        """The configuration with a digest, as a run had it (JSON)."""
        return self.state / "configs" / f"{digest}.json"

    def run_log(self, stamp: str) -> Path:
        """What a run that the watcher started said."""
        return self.products / "logs" / "runs" / f"{stamp}.log"

    # -- state
    # ---------------------------------------------------------------------------------------------
    @property
    def ingest_db(self) -> Path:
        """Queue of groups."""
        return self.databases / "ingest.sqlite3"

    @property
    def registry_db(self) -> Path:
        """Calibration sets."""
        return self.databases / "cal_registry.sqlite3"

    @property
    def products_db(self) -> Path:
        """Index of Measurement Sets, images and QA artefacts."""
        return self.databases / "products.sqlite3"

    @property
    def sources_db(self) -> Path:
        """Sources, epochs, and what light curves say."""
        return self.databases / "sources.sqlite3"

    @property
    def databases_host(self) -> Path:
        """Which host has the databases (JSON), where they are not in the state folder."""
        return self.state / "databases.json"

    @property
    def lightcurves_at(self) -> Path:
        """When light curves were last brought up to date (JSON)."""
        return self.state / "lightcurves.json"

    @property
    def watch_lock(self) -> Path:
        """Held by the watcher for as long as it lives."""
        return self.state / "locks" / "watch.lock"

    @property
    def backlog_lock(self) -> Path:
        """Held by `contimg backlog` for as long as it lives."""
        return self.state / "locks" / "backlog.lock"

    @property
    def retention_lock(self) -> Path:
        """Held while products are deleted."""
        return self.state / "locks" / "retention.lock"

    @property
    def told(self) -> Path:
        """What was told to people, and is not over (JSON)."""
        return self.state / "told.json"

    @property
    def told_lock(self) -> Path:
        """Held while messages are sent."""
        return self.state / "locks" / "told.lock"

    @property
    def watcher(self) -> Path:
        """What the watcher does now (JSON)."""
        return self.state / "watcher.json"

    @property
    def refusal(self) -> Path:
        """Why the last run did not begin (JSON); there until one does."""
        return self.state / "refused.json"

    def run_lock(self, lane: str) -> Path:
        """Held by a Snakemake run of a lane for as long as it lives."""
        return self.state / "locks" / f"run-{lane}.lock"

    @property
    def cluster_mark(self) -> Path:
        """There from the begin of a run on a cluster until none of its jobs is left."""
        return self.state / "cluster_jobs"

    @property
    def again(self) -> Path:
        """Newer than the results that a run must not believe; in Snakemake's working folder, which
        a dry-run changes, too."""
        return Path(".snakemake") / f"contimg_again.{self.tag}"

    @property
    def tag(self) -> str:
        """Keeps two projects of one user apart, in a shared tmpfs or on a cluster."""
        return hashlib.sha256(str(self.state.resolve()).encode()).hexdigest()[:8]

    def group_lock(self, group: str) -> Path:
        """Held by the stage that changes a group's products."""
        return self.state / "locks" / f"{group}.lock"

    def run_snapshot(self, run_id: str) -> Path:
        """What a run saw when it was planned."""
        return self.state / "runs" / f"{run_id}.json"

    # -- staging
    # -------------------------------------------------------------------------------------------
    def staging_roots(self) -> dict[str, Path]:
        """The folder for temporary subband Measurement Sets, by kind of staging."""
        return {
            "tmpfs": TMPFS / f"contimg-{os.getuid()}-{self.tag}",
            "disk": self.state / "staging",
        }


def set_name(group: str, fast: bool) -> str:
    """Name of the calibration set that a group gives; fast ones are not for science."""
    return group + FAST_SUFFIX if fast else group


def lasting_files(path: Path) -> list[Path]:
    """The file itself, or all files in a folder but those that change when a table is read, or when
    Snakemake looks at it."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sorted(
        f for f in files if f.is_file() and f.name not in ("table.lock", ".snakemake_timestamp")
    )


def staged(staging: Path, group: str, config: Config) -> list[Path]:
    """What conversion leaves for concat: a Measurement Set per subband, or a single one when
    pyuvdata writes it."""
    labels = (
        ["whole"]
        if config.writer == "pyuvdata"
        else [f"sb{sb:02d}" for sb in range(config.ingest.expected_subbands)]
    )
    return [staging / group / f"{label}.ms" for label in labels]


def spelling() -> Callable[[str], str]:
    """Gives files the one name that they have, however their folder was called when it was written
    down: relative to this working directory, or through a link. Each folder is looked up once."""
    folders: dict[str, str] = {}

    def spelled(name: str) -> str:
        folder, _, file = name.rpartition("/")
        if folder not in folders:
            folders[folder] = os.path.realpath(folder or ".")
        return os.path.join(folders[folder], file)

    return spelled
