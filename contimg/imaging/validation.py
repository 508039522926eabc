"""Is an image right? Noise, and a comparison with the catalogue."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from astropy.wcs import WCS
from scipy import optimize

from contimg.config import ImagingConfig, ValidationConfig
from contimg.findings import LEVELS, UNKNOWN, Finding, judged, unknown
from contimg.imaging.interface import Beam
from contimg.imaging.peaks import bright_peaks
from contimg.imaging.places import match_words, search
from contimg.imaging.stokes import StokesI
from contimg.sky.geometry import direction_cosines

DETECTION_SIGMA = 5.0
GOOD_SIGMA = 20.0
_FEW_EXPECTED, _MOSTLY_FOUND = 4, 0.7
_MOST_PEAKS, _MOST_EXPECTED = 40, 80
_SEARCHED_DEG, _SEARCH_CELL_ARCSEC = 1.0, 40.0
_SAID_ARCSEC = 0.3  # a difference between two lists of places
_COMPARED = (
    *("name", "ra_deg", "dec_deg", "catalogue_jy", "flux_jy", "east_arcsec", "north_arcsec"),
    *("snr", "beam", "found", "east_deg", "north_deg"),
)


def fit_source(
    image: np.ndarray, wcs: WCS, beam: Beam, ra_deg: float, dec_deg: float
) -> tuple[float, float, float] | None:
    """Peak, and offsets to the east and north (arcsec) from a position, of a restoring beam fitted
    around it.

    None outside the image. The fit uses pixels within 0.75 of the beam's major axis.
    """
    x, y = (float(v) for v in wcs.wcs_world2pix(ra_deg, dec_deg, 0))
    cell_arcsec = wcs.wcs.cdelt[1] * 3600
    radius = max(2, int(np.ceil(0.75 * beam.major_arcsec / cell_arcsec)))
    x0, y0 = round(x), round(y)
    if not (radius <= x0 < image.shape[0] - radius and radius <= y0 < image.shape[1] - radius):
        return None
    stamp = image[x0 - radius : x0 + radius + 1, y0 - radius : y0 + radius + 1].astype(float)
    dx, dy = np.meshgrid(
        np.arange(-radius, radius + 1) + x0 - x,
        np.arange(-radius, radius + 1) + y0 - y,
        indexing="ij",
    )
    east, north = -dx * cell_arcsec, dy * cell_arcsec
    near = np.exp(-((east**2 + north**2) / (0.5 * beam.major_arcsec) ** 2))
    if not np.isfinite(stamp).all():
        return None

    def residual(q):
        return ((q[0] * beam.gaussian(east - q[1], north - q[2]) - stamp) * near).ravel()

    peak = np.unravel_index(np.argmax(stamp * near), stamp.shape)
    fit = optimize.least_squares(
        residual,
        [stamp[peak], east[peak], north[peak]],
        x_scale=[max(abs(stamp[peak]), 1e-6), 1, 1],
    )
    return tuple(float(v) for v in fit.x)


def compare_catalogue(
    *,
    image: np.ndarray,
    beam: Beam,
    pb: np.ndarray,
    smearing: np.ndarray,
    grid,
    rms_jy: float,
    catalogue: pd.DataFrame,
    freq_hz: float,
    options: ImagingConfig,
) -> tuple[dict, pd.DataFrame]:
    """Catalogue sources in the image: found, flux ratios, offsets. Returns a summary and the table
    behind it.

    Ratios and offsets count sources above GOOD_SIGMA at beam responses over a half. The catalogue's
    fluxes are taken to the image's frequency with their spectral indices.

    pb, smearing  what beam and smearing leave of a peak, (npix, npix)
    """
    catalogue = catalogue[catalogue.flux_jy.values > 0]
    wcs, rows = grid.wcs(), []
    for source, pixel in _in_image(catalogue, grid, pb, options.beam_limit):
        response = pb[pixel]
        expected_jy = source.flux_jy * (freq_hz / 1.4e9) ** source.alpha
        if expected_jy * response < DETECTION_SIGMA * rms_jy:
            continue
        fitted = fit_source(image, wcs, beam, source.ra_deg, source.dec_deg)
        if fitted is None:
            continue
        peak, east, north = fitted
        rows.append(
            {
                "name": source.name,
                "ra_deg": source.ra_deg,
                "dec_deg": source.dec_deg,
                "catalogue_jy": expected_jy,
                "flux_jy": peak / response / smearing[pixel],
                "east_arcsec": east,
                "north_arcsec": north,
                "snr": peak / rms_jy,
                "beam": response,
                "found": peak > DETECTION_SIGMA * rms_jy
                and np.hypot(east, north) < beam.major_arcsec,
                **dict(zip(("east_deg", "north_deg"), _from_centre(source, grid), strict=True)),
            }
        )
    table = pd.DataFrame(rows, columns=_COMPARED).astype({"found": bool})
    # Calibrators stand where their list has them: this is what the catalogue would have made of it.
    moved = {
        one.name: round(float(one.moved_arcsec), 3)
        for one in catalogue.itertuples()
        if one.moved_arcsec > _SAID_ARCSEC
    }
    return _summary(table, rms_jy) | {"moved_by_list_arcsec": moved}, table


def _from_centre(places, grid) -> tuple:
    """Of places with ra_deg and dec_deg, to the east and north of an image's centre, in deg."""
    return tuple(
        np.degrees(x) for x in direction_cosines(places.ra_deg, places.dec_deg, *grid.centre_deg)
    )


def search_sky(
    *, image, beam: Beam, grid, rms_jy: float, catalogue: pd.DataFrame, check: Mapping
) -> list[Finding]:
    """Where the catalogue's sky would be, when it is not where it should be; nothing is said where
    most of it is found.

    catalogue  around the image, wider than it
    """
    expected, found = check["bright_expected"], check["bright_found"]
    if expected < _FEW_EXPECTED or found > _MOSTLY_FOUND * expected:
        return []
    least_jy = GOOD_SIGMA * rms_jy
    peaks = bright_peaks(
        image=image, beam=beam, cell_arcsec=grid.cell_deg * 3600, least_jy=least_jy
    )
    peaks = peaks[np.argsort(-peaks[:, 2])][:_MOST_PEAKS]
    (l, m), pixels = grid.axes_lm(), np.arange(grid.npix)
    seen = np.stack(
        [np.degrees(np.interp(peaks[:, k], pixels, axis)) for k, axis in enumerate((l, m))], axis=1
    )
    brightest = catalogue.iloc[np.argsort(-catalogue.flux_jy.values)[:_MOST_EXPECTED]]
    match = search(
        found_deg=seen,
        expected_deg=np.stack(_from_centre(brightest, grid), axis=1),
        within_deg=_SEARCHED_DEG,
        cell_deg=max(beam.major_arcsec / 2, _SEARCH_CELL_ARCSEC) / 3600,
    )
    if match is None:
        words = "no shift within 1 deg and no mirror image of the catalogue matches the sources"
        return [Finding("searched", "warn", words)]
    return [Finding("searched", "warn", match_words(match, len(peaks), grid.centre_deg[1]))]


def _in_image(
    catalogue: pd.DataFrame, grid, pb: np.ndarray, beam_limit: float
) -> Iterator[tuple[Any, tuple[int, int]]]:
    """Sources inside the image and its beam, each with its pixel."""
    if not len(catalogue):
        return
    x, y = grid.wcs().wcs_world2pix(catalogue.ra_deg.values, catalogue.dec_deg.values, 0)
    half = grid.npix / 2
    inside = np.isfinite(x) & np.isfinite(y) & (abs(x - half) < half) & (abs(y - half) < half)
    for source, i, j in zip(
        catalogue[inside].itertuples(),
        x[inside].round().astype(int),
        y[inside].round().astype(int),
        strict=True,
    ):
        pixel = min(i, grid.npix - 1), min(j, grid.npix - 1)
        if pb[pixel] >= beam_limit:
            yield source, pixel


def _summary(table: pd.DataFrame, rms_jy: float) -> dict:
    """Numbers and medians of a comparison with the catalogue; None where nothing was compared."""
    good = table[table.found & (table.snr >= GOOD_SIGMA) & (table.beam >= 0.5)]
    bright = table[(table.catalogue_jy * table.beam >= GOOD_SIGMA * rms_jy) & (table.beam >= 0.5)]
    ratio = good.flux_jy / good.catalogue_jy

    def number(value):
        return None if not len(good) or not np.isfinite(value) else round(float(value), 4)

    return {
        "expected": len(table),
        "found": int(table.found.sum()),
        "bright_expected": len(bright),
        "bright_found": int(bright.found.sum()),
        "compared": len(good),
        "flux_ratio": number(ratio.median()),
        "flux_scatter": number(1.4826 * (ratio - ratio.median()).abs().median()),
        "offset_east_arcsec": number(good.east_arcsec.median()),
        "offset_north_arcsec": number(good.north_arcsec.median()),
        "offset_arcsec": number(np.hypot(good.east_arcsec, good.north_arcsec).median()),
    }


@dataclass(frozen=True)
class Used:
    """What an image was made of, of what its group has."""

    data: float  # share of the visibilities
    antennas: tuple[str, ...]  # that are in it
    lost: tuple[str, ...]  # that took part and are not
    channels: float  # share with data
    integrations: float
    number_of_integrations: int

    def as_json(self) -> dict:
        """For a stage's result."""
        return {
            "data_share": self.data,
            "antennas_used": len(self.antennas),
            "antennas_lost": list(self.lost),
            "channel_share": self.channels,
            "integration_share": self.integrations,
        }


def used_of(stokes: StokesI, summary: Mapping) -> Used:
    """What is left of a group's visibilities; `summary` is `products.primary_beam`'s, which has
    been through the weights."""
    rows, names = stokes.rows, stokes.observation.antenna_names
    in_use = stokes.weights.any(axis=(0, 2))
    took_part = np.unique(np.concatenate([rows.ant_1, rows.ant_2]))
    left = np.unique(np.concatenate([rows.ant_1[in_use], rows.ant_2[in_use]]))
    times = summary["time_weights"] > 0
    return Used(
        data=1 - summary["flagged"],
        antennas=tuple(names[a] for a in left),
        lost=tuple(names[a] for a in took_part if a not in set(left)),
        channels=float((summary["freq_weights"] > 0).mean()),
        integrations=float(times.mean()),
        number_of_integrations=len(times),
    )


def assess(
    numbers: Mapping,
    check: Mapping,
    cleaned: str,
    used: Used,
    beam: Beam,
    expected_beam: Beam | None,
    gated: Sequence[Mapping],
    limits: ValidationConfig,
) -> tuple[str, list[Finding | Mapping]]:
    """An image's verdict (findings.LEVELS), and every finding that it follows from.

    numbers  rms_jy and thermal_jy; check: `compare_catalogue`; gated: findings of the stages
             before, as in their results
    """
    found: list[Finding | Mapping] = list(gated)
    noise = numbers["rms_jy"] / numbers["thermal_jy"]
    found.append(
        judged(
            name="noise",
            value=noise,
            warn=limits.warn_rms,
            fail=limits.fail_rms,
            words=f"noise {noise:.3g} times the thermal expectation",
            cause="Probably gains that moved since the calibrator, interference, or a bright "
            "source that no catalogue has: see the residual and the spectra",
        )
    )
    found += _against_catalogue(check, limits)
    found += _of_shares(used, limits)
    found.append(_of_beam(beam, expected_beam, used, limits))
    if cleaned != "as asked":
        found.append(Finding("cleaned", "warn", f"cleaned: {cleaned}"))
    levels = [one["level"] if isinstance(one, Mapping) else one.level for one in found]
    return max((level for level in levels if level != UNKNOWN), key=LEVELS.index), found


def _of_shares(used: Used, limits: ValidationConfig) -> list[Finding]:
    """How much of the group's data the image is made of."""
    taking_part = len(used.antennas) + len(used.lost)
    shares = (
        (
            "data",
            used.data,
            limits.warn_data,
            limits.fail_data,
            f"{100 * used.data:.0f} % of the visibilities are left",
        ),
        (
            "antennas",
            len(used.antennas) / taking_part,
            limits.warn_antennas,
            limits.fail_antennas,
            f"{len(used.antennas)} of {taking_part} antennas are in the image{_by_name(used)}",
        ),
        (
            "band",
            used.channels,
            limits.warn_band,
            limits.fail_band,
            f"{100 * used.channels:.0f} % of the channels have data",
        ),
        (
            "time",
            used.integrations,
            limits.warn_time,
            limits.fail_time,
            f"{used.integrations * used.number_of_integrations:.0f} of "
            f"{used.number_of_integrations} integrations have data",
        ),
    )
    cause = "See the plot of the flags, and prepare.json for what they are from"
    return [
        judged(name=name, value=share, warn=warn, fail=fail, percent=True, words=words, cause=cause)
        for name, share, warn, fail, words in shares
    ]


def _by_name(used: Used) -> str:
    return f" ({', '.join(used.lost)})" if used.lost else ""


def _of_beam(
    beam: Beam, expected_beam: Beam | None, used: Used, limits: ValidationConfig
) -> Finding:
    """The restoring beam against that which all antennas would give."""
    if expected_beam is None:
        return unknown(name="beam", why="the beam to be expected is not known: not compared")
    change = (
        beam.major_arcsec
        * beam.minor_arcsec
        / (expected_beam.major_arcsec * expected_beam.minor_arcsec)
    )
    return judged(
        name="beam",
        value=max(change, 1 / change) - 1,
        warn=limits.warn_beam,
        fail=limits.fail_beam,
        percent=True,
        words=f'beam {beam.major_arcsec:.1f}" x {beam.minor_arcsec:.1f}" where all antennas would '
        f'give {expected_beam.major_arcsec:.1f}" x {expected_beam.minor_arcsec:.1f}": its area '
        f"is {change:.2f} times that",
        cause=f"Antennas or baselines are missing{_by_name(used)}, or noisy: a source in the far "
        "sidelobes, say",
    )


def _against_catalogue(check: Mapping, limits: ValidationConfig) -> list[Finding]:
    """Fluxes, places and completeness; too few sources for that is unverified, not good."""
    few, expected, found = limits.min_compared, check["bright_expected"], []
    if expected >= few:
        lost = 1 - check["bright_found"] / expected
        found.append(
            judged(
                name="lost",
                value=lost,
                warn=limits.warn_lost,
                fail=limits.fail_lost,
                percent=True,
                words=f"{expected - check['bright_found']} of {expected} bright catalogue sources "
                "are not found",
                cause="Either the catalogue is of another sky, or header (declination, time) or "
                "calibration are wrong: look at the image beside other groups of the strip",
            )
        )
    if check["compared"] < few:
        why = (
            "the sky catalogue has none in this field"
            if not check["expected"]
            else (
                f"the catalogue has {check['expected']} in this field above 5 sigma, "
                f"{check['found']} of them found"
            )
        )
        words = f"compared with {check['compared'] or 'no'} sources, at least {few} needed: {why}"
        found.append(Finding("compared", "unverified", words, float(check["compared"]), float(few)))
        return found
    ratio, number = check["flux_ratio"], check["compared"]
    east, north = check["offset_east_arcsec"], check["offset_north_arcsec"]
    found += [
        judged(
            name="flux",
            value=abs(ratio - 1),
            warn=limits.warn_flux,
            fail=limits.fail_flux,
            percent=True,
            words=f"fluxes {100 * abs(ratio - 1):.0f} % {'low' if ratio < 1 else 'high'} (median "
            f"of {number} sources against the catalogue)",
            cause="Probably gains that moved since the calibrator, a wrong flux of the "
            "calibrator or of the catalogue: compare with the next groups, choose another "
            "set (contimg registry retire SET, contimg reprocess GROUP)",
        ),
        judged(
            name="offset",
            value=float(np.hypot(east, north)),
            warn=limits.warn_offset_arcsec,
            fail=limits.fail_offset_arcsec,
            unit="arcsec",
            words=f'sources {abs(east):.1f}" {"east" if east > 0 else "west"} and '
            f'{abs(north):.1f}" '
            f"{'north' if north > 0 else 'south'} of their places (median of {number})",
            cause="Probably phases that moved since the calibrator, or a wrong clock (15 arcsec a "
            "second)",
        ),
    ]
    return found
