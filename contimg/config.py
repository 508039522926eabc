"""The configuration: one frozen model, documented field by field, built once and handed to the
stages.

`config/config.yaml` states every default with a comment; `config/config.schema.json` is generated
from these models (`python -m contimg.config`), and a test fails when the three drift apart.
"""

import json
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from snakemake.utils import update_config

from contimg.errors import ConfigError
from contimg.telescope import TELESCOPE, VARIABLE

DEFAULT_CONFIG = Path("config/config.yaml")
_CLONE = Path(__file__).parents[1]
_PYUVDATA_SUBBANDS = 2
_SMALLEST_DEG, _LARGEST_DEG = 0.2, 12.0  # side of an image
_FLUX_UNITS_JY = {"jy": 1.0, "mjy": 1e-3, "ujy": 1e-6}


def parse_flux_jy(value: Any) -> float:
    """Flux density in Jy from a number (Jy) or a text such as ``0.1mJy``, ``50 uJy``, ``1e-4
    Jy``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(
        r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z]+)\s*", str(value)
    )
    if not match or match.group(2).lower() not in _FLUX_UNITS_JY:
        raise ValueError(
            f"{value!r} is not a flux density; write a number in Jy, or a text such as '0.1mJy'"
        )
    return float(match.group(1)) * _FLUX_UNITS_JY[match.group(2).lower()]


def parse_uvrange(value: Any) -> str | None:
    """CASA's `uvrange` with one bound or two: '>0.1klambda', '<1km', '50~2000m'; what `uv_limits`
    understands."""
    if value in (None, ""):
        return None
    uv_limits(str(value))
    return str(value)


def uv_limits(text: str) -> tuple[float, float, bool]:
    """Shortest and longest baseline of a `uvrange`, and whether in wavelengths (else in m)."""
    match = re.fullmatch(
        r"([<>]?)([\d.]+(?:[eE][+-]?\d+)?)(?:~([\d.]+(?:[eE][+-]?\d+)?))?(k|M)?(lambda|m)",
        "".join(text.split()),
    )
    if not match or bool(match[1]) == bool(match[3]):
        raise ValueError(
            f"{text!r} is no uvrange; write something like '>0.1klambda', '<500m', '0.1~1klambda'"
        )
    scale = {None: 1.0, "k": 1e3, "M": 1e6}[match[4]]
    low, high = float(match[2]) * scale, float(match[3] or match[2]) * scale
    low, high = {"<": (0.0, high), ">": (low, float("inf"))}.get(match[1], (low, high))
    return low, high, match[5] == "lambda"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace(":60", ":59"))  # file names may have a leap second


def _as_iso(value: Any) -> str:
    """YAML reads an unquoted 2026-01-25T22:26:05 as a date; the user meant the text."""
    given = value
    try:
        if isinstance(value, str) and value.endswith(":60"):
            _moment(value)
            return value
        value = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(value, datetime) and value.tzinfo:
            value = value.astimezone(UTC).replace(tzinfo=None)
        return datetime(*value.timetuple()[:6]).isoformat()
    except (ValueError, AttributeError):
        raise ValueError(f"{given!r} is no UTC time like '2026-01-25T22:26:05'") from None


def as_utc(text: str) -> str:
    """A UTC time or day as group ids are written; raises ConfigError."""
    try:
        return _as_iso(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _as_list(value: Any) -> Any:
    """One item where a list is expected."""
    return (value,) if isinstance(value, str | int | float | date) else value


UtcText = Annotated[str, BeforeValidator(_as_iso)]
UtcTexts = Annotated[tuple[UtcText, ...], BeforeValidator(_as_list)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
FluxJy = Annotated[float, BeforeValidator(parse_flux_jy)]
UvRange = Annotated[str | None, BeforeValidator(parse_uvrange)]


class _Section(BaseModel):
    # stations have numbers for names
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class PathsConfig(_Section):
    """Where data come from and go to; relative paths are relative to the working directory."""

    incoming: Path = Field(
        Path("data/incoming"), description="raw *_sb??.hdf5 files; never written by the workflow"
    )
    staging: str = Field(
        "auto",
        description="subband Measurement Sets go into a subfolder of this; auto: "
        "conversion.staging",
    )
    products: Path = Field(
        Path("data/products"), description="Measurement Sets, tables, images, results, plots, logs"
    )
    state: Path = Field(
        Path("data/state"), description="run snapshots, locks; shared with the nodes of a cluster"
    )
    databases: Path | None = Field(
        None,
        description="SQLite databases: on a disk of the one host that writes them; null: in "
        "paths.state",
    )


class CataloguesConfig(_Section):
    """Catalogues as CSV, positions ICRS."""

    stations: Path = Field(
        Path("config/catalogues/dsa110_stations.csv"), description="stations of the array (WGS84)"
    )
    calibrators: Path = Field(
        Path("config/catalogues/vla_calibrators.csv"), description="VLA calibrator list"
    )
    sky: Path = Field(
        Path("config/catalogues/nvss_ra344_dec16.csv"),
        description="sky at 1.4 GHz: name, ra_deg, dec_deg, flux_jy",
    )


class IngestConfig(_Section):
    """How files become groups, and which groups a run takes."""

    telescope: str = Field(
        "DSA-110",
        description="whose files these are; another one's definition is named by the environment's "
        "CONTIMG_TELESCOPE",
    )
    expected_subbands: int = Field(
        16, ge=1, le=99, description="a group is complete with the set 0..N-1"
    )
    min_subbands: int = Field(
        16, ge=1, description="start with fewer after collecting_timeout_s; the rest is flagged"
    )
    tolerance_s: float = Field(
        120,
        gt=0,
        lt=int(TELESCOPE.group_s),
        description="file names this close to the first are one group",
    )
    chunk_minutes: float = Field(
        5,
        gt=0,
        description="length of a group; caps the span of names, also where headers join files",
    )
    settle_s: float = Field(
        2, ge=0, description="a file written to less than this long ago is not looked at yet"
    )
    collecting_timeout_s: float = Field(
        3600, gt=0, description="an incomplete group fails this long after its last file came"
    )
    max_retries: int = Field(
        3, ge=0, description="attempts after the first before a group is failed"
    )
    retry_backoff_s: float = Field(
        60,
        ge=0,
        description="the watcher waits this long before the second attempt, then twice as long",
    )
    lease_s: float = Field(
        120,
        gt=0,
        description="groups of a run that gave no sign of life for this long are taken back",
    )
    order: Literal["oldest", "newest"] = Field("oldest", description="which groups go first")
    groups_per_run: int = Field(
        16, ge=1, description="most groups that the watcher gives to one run"
    )
    poll_s: float = Field(
        10, gt=0, description="the watcher looks at least this often; network disks send no events"
    )
    start: UtcText | None = Field(None, description="only groups at or after this UTC time (ISO)")
    end: UtcText | None = Field(None, description="only groups before this UTC time (ISO)")
    groups: UtcTexts = Field((), description="only these group ids; empty: all")

    def takes(self, group_id: str) -> bool:
        """Whether a group is asked for."""
        if self.groups and group_id not in self.groups:
            return False
        return (self.start is None or group_id >= self.start) and (
            self.end is None or group_id < self.end
        )

    def span(self, also: Collection[str] = ()) -> tuple[str, str]:
        """First and last time in the names of the files that can belong to a group asked for, or to
        one of `also`."""
        first = min(max(self.start or "", min(self.groups, default="")), *also, "9")
        last = max(min(self.end or "9", max(self.groups, default="9")), *also, "")
        # groups at the edges are seen whole, to be told from those beyond
        margin = timedelta(minutes=2 * self.chunk_minutes)
        return (
            (_moment(first) - margin).isoformat(timespec="seconds") if first else "",
            (_moment(last) + margin).isoformat(timespec="seconds") if last != "9" else last,
        )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.min_subbands > self.expected_subbands:
            raise ValueError("ingest.min_subbands is larger than ingest.expected_subbands")
        return self


class ConversionConfig(_Section):
    """UVH5 to Measurement Set."""

    writer: Literal["auto", "parallel-subband", "pyuvdata"] = Field(
        "auto",
        description="pyuvdata: a check, for 1 or 2 subbands; auto: that for so few, else "
        "parallel-subband",
    )
    workers: int = Field(
        16, ge=1, description="subbands converted at once; bounded by the cores of the job"
    )
    staging: Literal["auto", "tmpfs", "disk"] = Field(
        "auto", description="auto: tmpfs when it has room, else disk"
    )
    tmpfs_keep_free_gb: float = Field(
        4, ge=0, description="memory that staging in tmpfs leaves to others"
    )
    telescope_name: str | None = Field(
        None,
        description="name in the Measurement Set, which CASA must know; null: the telescope's own "
        "(OVRO_MMA)",
    )


class FlaggingConfig(_Section):
    """Flags before calibration."""

    strategy: Literal["mad", "aoflagger", "tfcrop", "none"] = Field(
        "mad",
        description="what looks for interference: mad (array-averaged power), aoflagger, tfcrop "
        "(CASA), or none",
    )
    channel_sigma: float = Field(
        6.0,
        gt=3,
        description="mad: array-averaged power of a time and channel, above its neighbours",
    )
    sample_sigma: float = Field(
        7.0, gt=4, description="mad: amplitude of one visibility, above its baseline's"
    )
    max_channel_fraction: float = Field(
        0.5, gt=0, le=1, description="mad: flag a channel with more than this flagged"
    )
    max_time_fraction: float = Field(
        0.5, gt=0, le=1, description="mad: flag an integration with more than this flagged"
    )
    dead_coherence: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="an antenna with less than this share of the median coherent power, and next "
        "to none, is dead",
    )
    odd_noise_factor: float = Field(
        5.0, gt=1, description="flag an antenna with this much more noise than most, or less"
    )


class CalibrationConfig(_Section):
    """Calibrator choice, sky model, solutions, validity."""

    solver: Literal["fast", "casa"] = Field(
        "fast", description="fast: our own least squares; casa: gaincal and bandpass"
    )
    do_k: bool = Field(False, description="solve delays (K) before the bandpass; with CASA")
    sky_min_mjy: float = Field(
        10, ge=0, description="faintest catalogue source in the model, mJy at 1.4 GHz"
    )
    sky_radius_deg: float = Field(
        2.5,
        ge=0,
        description="catalogue sources this close to the calibrator are in the model; 2.5 is the "
        "whole beam",
    )
    min_flux_jy: FluxJy = Field(1.0, description="faintest calibrator, flux at 1.4 GHz")
    min_beam: float = Field(
        0.5, gt=0, lt=1, description="smallest mean beam response at a calibrator"
    )
    allow: Texts = Field((), description="only these calibrators (names of the list); empty: all")
    deny: Texts = Field((), description="never these calibrators")
    flux_override: dict[str, FluxJy] = Field(
        {}, description="flux at 1.4 GHz by calibrator name, before any catalogue"
    )
    uvrange: UvRange = Field(
        None, description="baselines to solve with, as CASA has it: '>0.1klambda', '50~2000m'"
    )
    refant: str = Field("auto", description="station name, or auto: healthy and central")
    min_snr: float = Field(3.0, gt=0, description="solutions below are flagged")
    gain_interval_s: float | None = Field(
        None,
        gt=0,
        description="a gain this often, for the calibrator's own group; null: one. Others get "
        "the mean",
    )
    fill_channels: int = Field(
        4, ge=0, description="bandpass gaps up to this wide are interpolated"
    )
    fast: bool = Field(False, description="quick solutions from averaged data, marked NON_SCIENCE")
    timebin_s: float = Field(30, gt=0, description="fast: average data over this long")
    chanbin: int = Field(4, ge=1, description="fast: average data over so many channels")
    fast_uvrange: UvRange = Field(">1klambda", description="fast: baselines to solve with")
    phase_only: bool = Field(True, description="fast: gains have phases only, after the bandpass")
    refine: Literal["ap", "phase", "off"] = Field(
        "ap",
        description="a group's own gains against the sky that it saw: amplitudes and phases (ap), "
        "phases, or none",
    )
    flux_scale: Literal["catalogue", "set"] = Field(
        "catalogue",
        description="what sets the fluxes: all catalogue sources in the field, or the calibrator "
        "of the set",
    )
    flag_faulty: bool = Field(
        True,
        description="flag antennas whose data do not fit: exchanged cables or polarisations, no "
        "sky, far too noisy; false: they are only named",
    )
    noisy_factor: float = Field(
        3.0, gt=1, description="an antenna is noisy with so many times the median receiver's noise"
    )
    subtract_far: bool = Field(
        True,
        description="take Cas A, Cyg A, Tau A, Vir A and the Sun out of the data where they are "
        "seen in the far sidelobes",
    )
    refine_max_noise: float = Field(
        1.05, gt=1, description="gains that raise the noise by more are not used"
    )
    refine_max_flagged: float = Field(
        0.1, gt=0, lt=1, description="nor those that would flag more of the data"
    )
    refine_max_step_deg: float = Field(
        45.0,
        gt=0,
        description="nor phases that jump by more between integrations, or between X and Y",
    )
    max_model_misfit: float = Field(
        0.3,
        gt=0,
        description="calibrated data and catalogue differ more than this in amplitude: not for "
        "science",
    )
    min_antennas: int = Field(
        5, ge=5, description="a set with solutions for fewer antennas is not used"
    )
    max_flagged: float = Field(
        0.5, gt=0, le=1, description="nor one with more of its solutions flagged"
    )
    min_median_snr: float = Field(
        5.0, gt=0, description="nor one whose median solution has less signal to noise"
    )
    max_amplitude_scatter: float = Field(
        0.2, gt=0, description="nor one that scatters more about its neighbours, relative"
    )
    max_phase_scatter_deg: float = Field(
        12.0, gt=0, description="nor one that scatters more about its neighbours, deg"
    )
    min_modelled: float = Field(
        0.8, ge=0, le=1, description="nor one whose model lacks more of the flux in the beam"
    )
    validity_h: float = Field(
        24, gt=0, description="a set is valid this long before and after its mid time"
    )
    dec_tolerance_deg: float = Field(
        1.0, gt=0, description="a set is valid for pointings this close in declination"
    )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.do_k and self.gain_interval_s:
            raise ValueError("calibration.do_k and gain_interval_s do not go together: choose one")
        return self


class GatesConfig(_Section):
    """What calibrated data look like, whatever is in the field: beyond, a set or an image is
    passable (warn) or wrong (fail)."""

    sefd_jy: float = Field(
        7000, gt=0, description="noise of a receiver: 6500 by design, 8016 as measured in 2026"
    )
    warn_sefd_factor: float = Field(
        2.0, gt=1, description="median receiver, so many times noisier or quieter than that"
    )
    fail_sefd_factor: float = Field(3.5, gt=1, description="the same")
    warn_sefd_scatter: float = Field(
        0.6, gt=0, description="scatter of ln(noise) among receivers; 0.27 as measured"
    )
    fail_sefd_scatter: float = Field(1.2, gt=0, description="the same")
    warn_snr_share: float = Field(
        0.5, gt=0, lt=1, description="signal to noise of the gains, of what the model promises"
    )
    fail_snr_share: float = Field(0.2, gt=0, lt=1, description="the same")
    warn_explained: float = Field(
        0.8, gt=0, lt=1, description="share of the coherent power that the model explains"
    )
    fail_explained: float = Field(0.5, gt=0, lt=1, description="the same")
    warn_offset_arcsec: float = Field(
        30.0, gt=0, description="place of the calibrator in the calibrated data"
    )
    fail_offset_arcsec: float = Field(120.0, gt=0, description="the same")
    warn_gain_change: float = Field(
        1.3, gt=1, description="gains of all antennas, against the nearest other set: ratio"
    )
    fail_gain_change: float = Field(3.0, gt=1, description="the same")
    antenna_gain_change: float = Field(
        1.5, gt=1, description="an antenna whose gain changed by more than the others' is named"
    )
    antenna_phase_change_deg: float = Field(60.0, gt=0, description="or by so much in phase")
    antenna_delay_change_ns: float = Field(2.0, gt=0, description="or by so much in delay")
    gradient_arcsec: float = Field(
        5.0, gt=0, description="phases that moved along the array, as a shift of the sky, are said"
    )
    moved_sky_arcsec: float = Field(
        2.0, gt=0, description="a group's own phases that did so since its set, the same"
    )
    warn_parts: float = Field(
        0.05, gt=0, description="flux of a part of band or time, or of X or Y, against the rest"
    )
    fail_parts: float = Field(0.5, gt=0, description="the same")
    warn_antennas_changed: float = Field(
        0.2, gt=0, le=1, description="share of the antennas that changed"
    )
    fail_antennas_changed: float = Field(0.6, gt=0, le=1, description="the same")
    warn_sefd_change: float = Field(
        1.3, gt=1, description="noise of a calibrated group over that of its set's observation"
    )
    fail_sefd_change: float = Field(4.0, gt=1, description="the same")
    antenna_sefd_change: float = Field(
        2.0, gt=1, description="an antenna whose noise changed so much is named"
    )
    warn_model_misfit: float = Field(
        0.1, gt=0, description="amplitude of the catalogue in calibrated data, off 1"
    )


class ImagingConfig(_Section):
    """Imaging."""

    mode: Literal["full", "quick"] = Field(
        "full", description="quick: a small coarse image to look at, marked so"
    )
    backend: Literal["wgridder", "tclean", "wsclean"] = Field(
        "wgridder", description="wgridder (ducc0), tclean (CASA), or wsclean (a program)"
    )
    imsize: int = Field(
        4800,
        ge=128,
        le=32768,
        multiple_of=2,
        description="pixels on a side; even, with small prime factors",
    )
    cell_arcsec: float = Field(
        3.0, ge=0.2, le=20, description="pixel size; a fifth of the restoring beam or less"
    )
    weighting: Literal["briggs", "natural", "uniform"] = Field(
        "briggs", description="of the visibilities"
    )
    robust: float = Field(0.0, ge=-2, le=2, description="Briggs robust parameter")
    taper_arcsec: float | None = Field(None, gt=0, description="Gaussian taper, FWHM in the image")
    uvrange: UvRange = Field(None, description="baselines to image, as CASA has it: '>0.1klambda'")
    average_channels: int | None = Field(
        None,
        ge=1,
        description="average so many; null: as many as cost 0.3 % at the half-power point",
    )
    subtract_above_jy: FluxJy | None = Field(
        0.02,
        description="catalogue sources that are apparently brighter leave the visibilities with "
        "their beam track; null: none",
    )
    subtract_outside_above_jy: FluxJy = Field(
        0.02, description="the same for sources outside the image, which no clean reaches"
    )
    beam: Literal["airy", "fitted"] = Field(
        "airy",
        description="primary beam of models and images: the Airy disk, or the one fitted to images "
        "of the strip (contimg instrument --fit)",
    )
    beam_file: Path | None = Field(
        None, description="measured primary beam (FITS, power) instead of these"
    )
    niter: int = Field(50000, ge=0, description="most clean components")
    gain: float = Field(0.1, gt=0, lt=1, description="of the clean's minor cycle")
    multiscale: bool = Field(False, description="clean on several scales")
    max_major_cycles: int = Field(12, ge=1, description="then the clean ends")
    max_minutes: float = Field(30, gt=0, description="then the clean ends, after its major cycle")
    threshold: FluxJy | None = Field(
        None, description="stop at this residual peak ('0.5mJy'); null: threshold_sigma"
    )
    threshold_sigma: float = Field(
        1.5, gt=0, description="stop at this many sigma inside the automatic mask"
    )
    mask_sigma: float = Field(
        5.0, gt=0, description="peaks above this many sigma enter the automatic mask"
    )
    beam_limit: float = Field(
        0.2, gt=0, lt=1, description="the primary-beam corrected image is blank below"
    )
    skip_fits: bool = Field(False, description="write the CASA images only")
    slanted_fits: bool = Field(
        False, description="write the image on the snapshot's slanted grid, too (wgridder)"
    )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.slanted_fits and self.backend != "wgridder":
            raise ValueError("imaging.slanted_fits is of the backend wgridder")
        side_deg = self.imsize * self.cell_arcsec / 3600
        if not _SMALLEST_DEG <= side_deg <= _LARGEST_DEG:
            raise ValueError(
                f"imaging.imsize {self.imsize} of imaging.cell_arcsec {self.cell_arcsec:g} is an "
                f"image of {side_deg:.3g} deg; expected {_SMALLEST_DEG:g} to {_LARGEST_DEG:g}"
            )
        return self


class ValidationConfig(_Section):
    """When an image is only passable (warn), or must not be used (fail). What data must be like is
    in `gates`."""

    warn_rms: float = Field(1.5, gt=0, description="noise over the thermal expectation")
    fail_rms: float = Field(10.0, gt=0, description="the same")
    warn_flux: float = Field(
        0.03, gt=0, description="median flux ratio to the catalogue, difference from 1"
    )
    fail_flux: float = Field(0.2, gt=0, description="the same")
    warn_offset_arcsec: float = Field(1.0, gt=0, description="median offset from the catalogue")
    fail_offset_arcsec: float = Field(5.0, gt=0, description="the same")
    warn_flux_place: float = Field(
        0.08,
        gt=0,
        description="change of fluxes, against the catalogue, from the centre to half power",
    )
    fail_flux_place: float = Field(0.5, gt=0, description="the same")
    warn_lost: float = Field(
        0.1, ge=0, description="share of the catalogue's bright sources that were not found"
    )
    fail_lost: float = Field(0.5, ge=0, description="the same")
    min_compared: int = Field(
        4, ge=1, description="sources that a comparison takes; with fewer an image is unverified"
    )
    warn_data: float = Field(
        0.8, ge=0, le=1, description="share of the group's visibilities that is in the image"
    )
    fail_data: float = Field(0.1, ge=0, le=1, description="the same")
    warn_antennas: float = Field(
        0.85, ge=0, le=1, description="share of the antennas that took part"
    )
    fail_antennas: float = Field(0.3, ge=0, le=1, description="the same")
    warn_band: float = Field(0.8, ge=0, le=1, description="share of the channels")
    fail_band: float = Field(0.2, ge=0, le=1, description="the same")
    warn_time: float = Field(0.8, ge=0, le=1, description="share of the integrations")
    fail_time: float = Field(0.2, ge=0, le=1, description="the same")
    warn_fringes: float = Field(
        4.0, gt=0, description="power of a residual at one spacing and angle over that at others"
    )
    fail_fringes: float = Field(1000.0, gt=0, description="the same")
    warn_polarised: float = Field(
        2.0, gt=0, description="noise of XX - YY over the thermal expectation"
    )
    fail_polarised: float = Field(100.0, gt=0, description="the same")
    warn_beam: float = Field(
        0.2, gt=0, description="area of the beam against that of all antennas, larger or smaller by"
    )
    fail_beam: float = Field(2.0, gt=0, description="the same")
    publish: Annotated[
        tuple[Literal["good", "warn", "unverified", "fail"], ...], BeforeValidator(_as_list)
    ] = Field(
        ("good", "warn", "unverified"),
        description="verdicts with which an image may be published, if nothing else is against it",
    )


class PhotometryConfig(_Section):
    """Which sources are measured in every image, and what is known of their errors. What the
    numbers are: docs/lightcurves.md."""

    least_jy: float = Field(
        0.005, gt=0, description="catalogue sources of this flux at 1.4 GHz and more are measured"
    )
    strip_half_deg: float = Field(
        3.0, gt=0, description="how far from the pointing's declination sources are taken"
    )
    beam_width_error: float = Field(
        0.01, ge=0, description="relative error of the Airy disk's width; a fitted beam has its own"
    )
    beam_pointing_error_deg: float = Field(0.02, ge=0, description="the same of where it points")
    reference_days: int = Field(
        10,
        ge=3,
        description="days whose own mean fluxes scale all days; before there are so many, the "
        "catalogue does",
    )
    catalogue_scatter: float = Field(
        0.1, gt=0, description="relative scatter of the catalogue's fluxes against ours"
    )
    update_minutes: float | None = Field(
        60.0,
        ge=0,
        description="runs bring light curves up to date this long after the last time; null: only "
        "contimg lightcurves does",
    )
    most_false: float = Field(
        0.1, gt=0, description="a candidate: chance makes fewer than so many like it in all"
    )


class MosaicsConfig(_Section):
    """The fixed division of the sky, and what is made of days and years of it (docs/mosaics.md).
    Pixels and beam stay as they are for as long as days are to be added to each other."""

    make: Literal["asked", "over"] = Field(
        "asked",
        description="when runs make mosaics: asked (snakemake epoch/STRIP/DAY, tract/NAME), or of "
        "every tract that the sky has gone past, too",
    )
    cell_arcsec: float = Field(3.0, gt=0, description="pixel size of tracts")
    height_deg: float = Field(
        4.4, gt=0, description="of tracts: an image's height and what precession moves it"
    )
    beam_arcsec: tuple[float, float, float] | None = Field(
        None,
        description="restoring beam of all tiles: major and minor axis, position angle in deg; "
        "null: what all antennas give, by a strip's first tiles",
    )
    most_beam_off: float = Field(
        0.3, gt=0, description="tiles whose own beam differs by so much from it are left out"
    )
    candidate_sigma: float = Field(
        6.0, gt=0, description="what a day shows beyond the other days is a candidate above this"
    )
    catalogues: tuple[Literal["day", "deep"], ...] = Field(
        ("deep",), description="of which mosaics sources are listed: day, deep"
    )
    hips: tuple[Literal["day", "deep"], ...] = Field(
        ("day", "deep"), description="of which mosaics the page's map is made: day, deep"
    )
    finder_minutes: float = Field(
        30.0, gt=0, description="the source finder is ended after so long"
    )


class RetentionConfig(_Section):
    """What is deleted when it is no longer needed. Nothing by default; docs/storage.md has the
    sizes."""

    measurement_sets_days: float | None = Field(
        None,
        ge=0,
        description="a Measurement Set goes this long after its image was verified; null: never",
    )
    tables_days: float | None = Field(
        None, ge=0, description="a calibration set goes this long after it was last valid"
    )
    images_days: float | None = Field(
        None, ge=0, description="images (CASA and FITS) go this long after they were made"
    )
    mosaics_days: float | None = Field(
        None,
        ge=0,
        description="mosaics of days go this long after they were made, once they are in the sum "
        "of all days",
    )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        kept_days = self.measurement_sets_days or 0
        if self.images_days is not None and kept_days > self.images_days:
            raise ValueError(
                "retention.images_days is less than measurement_sets_days: images would go first"
            )
        return self


class NotifyConfig(_Section):
    """Who is told what is wrong, and what is new in the sky; docs/monitoring.md."""

    file: Path | None = Field(
        None,
        description="addresses of mail, chat or webhooks as apprise has them, one a line; they "
        "hold secrets: readable to you alone. null: nobody",
    )
    behind_minutes: float = Field(
        60.0, gt=0, description="the oldest group that could be done and is not is older than this"
    )
    silent_minutes: float = Field(60.0, gt=0, description="the newest data are older than this")
    disk_hours: float = Field(24.0, gt=0, description="the disk does for less than this")
    candidates: bool = Field(True, description="what is new or varies in the sky, too")
    calm_minutes: float = Field(
        10.0, ge=0, description="what was not seen for so long is said to be over"
    )


class PageConfig(_Section):
    """The page of contimg serve; docs/monitoring.md."""

    carta_url: str | None = Field(
        None,
        description="a CARTA server that sees paths.products: images get a link that opens them; "
        "null: none",
    )


class Config(_Section):
    """Everything a run is told."""

    paths: PathsConfig = PathsConfig()
    catalogues: CataloguesConfig = CataloguesConfig()
    ingest: IngestConfig = IngestConfig()
    conversion: ConversionConfig = ConversionConfig()
    flagging: FlaggingConfig = FlaggingConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    gates: GatesConfig = GatesConfig()
    imaging: ImagingConfig = ImagingConfig()
    validation: ValidationConfig = ValidationConfig()
    photometry: PhotometryConfig = PhotometryConfig()
    mosaics: MosaicsConfig = MosaicsConfig()
    retention: RetentionConfig = RetentionConfig()
    notify: NotifyConfig = NotifyConfig()
    page: PageConfig = PageConfig()

    @property
    def writer(self) -> str:
        """The writer that conversion uses."""
        if self.conversion.writer != "auto":
            return self.conversion.writer
        return (
            "parallel-subband" if self.ingest.expected_subbands > _PYUVDATA_SUBBANDS else "pyuvdata"
        )

    @model_validator(mode="after")
    def _of_this_telescope(self) -> Self:
        if self.ingest.telescope != TELESCOPE.name:
            raise ValueError(
                f"ingest.telescope is {self.ingest.telescope}, and this process works for "
                f"{TELESCOPE.name}: {VARIABLE} in the environment names the telescope's file "
                "(docs/other-arrays.md)"
            )
        return self

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        subbands = self.ingest.expected_subbands
        if self.writer == "pyuvdata" and subbands > _PYUVDATA_SUBBANDS:
            raise ValueError(
                f"conversion.writer pyuvdata is for {_PYUVDATA_SUBBANDS} subbands at most, and "
                f"ingest.expected_subbands is {subbands}: choose parallel-subband"
            )
        return self


def from_mapping(values: Mapping[str, Any]) -> Config:
    """The configuration from a (merged) mapping; raises ConfigError naming every key that is
    wrong."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        lines = [f"  {_in_words(one)}" for one in error.errors()]
        raise ConfigError(
            "configuration:\n"
            + "\n".join(lines)
            + "\nEvery key is explained in config/config.yaml."
        ) from None


def _in_words(error: Mapping) -> str:
    """What pydantic found wrong with a key, for people."""
    if error["type"] == "value_error" and len(error["loc"]) < 2:  # of keys that do not go together
        return str(error["ctx"]["error"])
    *sections, key = map(str, error["loc"])
    name = ".".join((*sections, key))
    if error["type"] != "extra_forbidden":
        words = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        return f"{name}: {words} (found {error['input']!r})"
    fields = {
        name: section.annotation.model_fields for name, section in Config.model_fields.items()
    }
    if sections:
        near = get_close_matches(key, fields.get(sections[0], ()), 1)
    else:
        near = [f"{one}.{key}" for one, keys in fields.items() if key in keys] or get_close_matches(
            key, fields, 1
        )
    return f"unknown key {name}" + (f"; did you mean {near[0]}?" if near else "")


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `top` over it, key by key down to the leaves, as Snakemake does
    it."""
    merged = deepcopy(dict(base))
    update_config(merged, top)
    return merged


def load(files: Iterable[Path] = ()) -> Config:
    """The default file, then `files` over it in turn. Raises ConfigError also where there is no
    site: in a working directory without the default file, unless `files` name all folders by
    absolute paths; the catalogues are those of the clone then."""
    values: dict[str, Any] = {}
    elsewhere = not DEFAULT_CONFIG.exists()
    for path in [_CLONE / DEFAULT_CONFIG if elsewhere else DEFAULT_CONFIG, *map(Path, files)]:
        try:
            loaded = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
        if not isinstance(loaded, Mapping):
            raise ConfigError(f"{path}: expected sections with keys, found {type(loaded).__name__}")
        values = merge(values, loaded)
    config = from_mapping(values)
    return _of_another_folder(config) if elsewhere else config


def _of_another_folder(config: Config) -> Config:
    folders = {
        name: path for name, path in config.paths.model_dump().items() if isinstance(path, Path)
    }
    if relative := [
        f"paths.{name} ({path})" for name, path in folders.items() if not path.is_absolute()
    ]:
        raise ConfigError(
            f"there is no site here: {Path.cwd()} has no {DEFAULT_CONFIG}, and "
            f"{', '.join(relative)} would lie in it. Go to the "
            "clone, or name a --configfile in which these are absolute"
        )
    lists = {name: _CLONE / path for name, path in config.catalogues.model_dump().items()}
    return config.model_copy(update={"catalogues": config.catalogues.model_copy(update=lists)})


def json_schema() -> str:
    """JSON schema of the configuration, for editors."""
    schema = Config.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part["description"] = " ".join(part["description"].split())
    return json.dumps(schema, indent=2) + "\n"


def default_yaml() -> str:
    """The default configuration with a comment on every key."""
    lines = [
        "# yaml-language-server: $schema=config.schema.json",
        "# Every key with its default. Written by `python -m contimg.config` from "
        "contimg/config.py, which checks it.",
        "# Do not edit: put what you want otherwise into a file of your own (`make run "
        "CONFIG=my.yaml`).",
    ]
    for name, section in Config.model_fields.items():
        about = " ".join(section.annotation.__doc__.split())
        wrapped = textwrap.wrap(about, 100, initial_indent="# ", subsequent_indent="# ")
        lines += ["", *wrapped, f"{name}:"]
        for key, entry in section.annotation.model_fields.items():
            value = getattr(section.default, key)
            text = (
                yaml.safe_dump(_plain(value), default_flow_style=True)
                .removesuffix("\n")
                .removesuffix("\n...")
            )
            lines.append(f"  {key}: {text}  # {entry.description}")
    return "\n".join(lines) + "\n"


_README = """# Configuration

Write what you want otherwise into a YAML file of your own, and name it after the defaults:
`make run CONFIG=my.yaml`, `snakemake --profile local --configfile config/config.yaml my.yaml`,
`contimg COMMAND --configfile my.yaml`. A key that is wrong is named, with what was expected, before
anything runs. Nothing that is done is made again by an edited configuration alone (`contimg plan`
says which groups were made with another one). Editors complete keys by `config.schema.json`.

The least that a site needs:

```yaml
paths: {incoming: /data/incoming, products: /data/products, state: /data/state}
catalogues: {sky: /data/nvss.csv}   # contimg catalog /data/nvss.csv makes it
```

Raw files are `*_sbNN.hdf5` in `paths.incoming`, a group of them every five minutes; there is no
sample sheet. This page is written by `python -m contimg.config` from `contimg/config.py`.
"""


def readme() -> str:
    """The table of keys, for people and for the workflow catalogue."""
    lines = _README.splitlines()
    for name, section in Config.model_fields.items():
        lines += ["", f"## {name}", "", " ".join(section.annotation.__doc__.split()), ""]
        lines += ["| key | default | what |", "|---|---|---|"]
        for key, entry in section.annotation.model_fields.items():
            value = json.dumps(_plain(getattr(section.default, key)))
            about = entry.description.replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| `{name}.{key}` | `{value}` | {about} |")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """A value as YAML knows it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


GENERATED = {
    Path("config/config.schema.json"): json_schema,
    Path("config/config.yaml"): default_yaml,
    Path("config/README.md"): readme,
}
if __name__ == "__main__":
    for path, text in GENERATED.items():
        path.write_text(text())
