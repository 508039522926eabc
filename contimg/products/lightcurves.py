"""Days and light curves from what was measured in groups.

Everything is a function of the set of files that are there: a day of its groups, the reference and
the own means; those of the first days. So it does not matter in which order groups come, or how
often; what has not changed is not made again.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sqlalchemy import delete, insert, select

from contimg.calibration.beamfit import beam_slopes
from contimg.clock import now
from contimg.config import Config
from contimg.paths import Paths
from contimg.photometry import epochs, variability
from contimg.products import publishing
from contimg.products import tables as product_tables
from contimg.products.sources import Base, Detection, Epoch, MeasuredGroup, Source
from contimg.queue import tables as queue_tables
from contimg.sky.geometry import SKY_ARCSEC_S
from contimg.store import db
from contimg.store.files import checksum, lock, remove
from contimg.store.parquet import query, read_about, read_table, write_table

log = logging.getLogger(__name__)
DAYS_A_MONTH = 30
_AROUND_TURNS = 0.02  # a group's sources lie within so many turns of its meridian
_SAME_STRIP_DEG = 0.1
_VERSION = 1  # of what days are made by
DAY_UNITS = {
    "mjd": "UTC",
    "flux_jy": "Jy, scaled to what `scaled_to` says",
    "error_jy": "Jy, one sigma of the noise",
    "systematic": "relative error of scales and beam",
    "chi2": "of the tiles against their mean",
    "beam": "response of the primary beam, on average",
    "number": "measurements",
    "tile": "the group that counts most",
}
_OF_IMAGE = ("freq_hz", "bandwidth_hz", "exposure_s", "app_dec_deg")
_BEAM_TERMS = ("wider_east", "wider_north", "points_east_deg", "points_north_deg")
_DAY_COLUMNS = ("source", "sday", *DAY_UNITS)


@dataclass(frozen=True)
class Updated:
    """What an update did: days made again, strips whose numbers are new, and candidates."""

    days: int
    unchanged: int
    strips: tuple[str, ...]
    candidates: int


def update(config: Config) -> Updated:
    """Make every day and light curve that its groups have changed; and the numbers of their
    sources."""
    paths = Paths.of(config)
    with lock(paths.state / "locks" / "lightcurves.lock", wait=True, what="light curves"):
        groups = _look(paths)
        usable = _usable(config, groups)
        made = unchanged = found = 0
        strips = []
        for strip in sorted({one.strip for one in groups}):
            changed, same = _update_strip(config, strip, usable, groups)
            made, unchanged = made + len(changed), unchanged + same
            if changed:
                strips.append(strip)
                _write_months(paths, strip, {day // DAYS_A_MONTH for day in changed})
                found += _update_numbers(config, strip)
        return Updated(made, unchanged, tuple(strips), found)


def _look(paths: Paths) -> list[MeasuredGroup]:
    """Every group's photometry; files that have not changed since are not read."""
    with db.reading(paths.sources_db) as session:
        known = (
            {}
            if session is None
            else {g.group_id: g for g in session.scalars(select(MeasuredGroup))}
        )
        if session is not None:
            session.expunge_all()
    new: list[MeasuredGroup] = []
    there: list[MeasuredGroup] = []
    for group in paths.measured():
        path = paths.photometry(group)
        status = path.stat()
        was = known.get(group)
        if was and (was.size, was.changed_ns) == (status.st_size, status.st_mtime_ns):
            there.append(was)
            continue
        about = read_about(path)
        row = MeasuredGroup(
            group_id=group,
            strip=about["strip"],
            mid_mjd=about["mid_mjd"],
            verdict=about["verdict"],
            reference=about["reference"],
            checksum=checksum(path),
            size=status.st_size,
            changed_ns=status.st_mtime_ns,
        )
        there.append(row)
        new.append(row)
    gone = set(known) - {one.group_id for one in there}
    with db.writing(paths.sources_db, Base) as session:
        altered = {one.group_id for one in new} | gone
        for table in (MeasuredGroup, Detection):
            session.execute(delete(table).where(table.group_id.in_(altered)))
        found = [row for one in new for row in _detections(paths, one)]
        session.add_all([*new, *found])
        session.flush()
        session.expunge_all()
    return there


def _detections(paths: Paths, group: MeasuredGroup) -> list[Detection]:
    path = paths.unlisted(group.group_id)
    if not path.exists():
        return []
    of_group = {"group_id": group.group_id, "strip": group.strip, "mid_mjd": group.mid_mjd}
    return [Detection(**of_group, **row) for row in read_table(path).to_dict("records")]


def _usable(config: Config, groups: Sequence[MeasuredGroup]) -> list[MeasuredGroup]:
    """Groups whose image may be published, as far as the index knows; else by its verdict."""
    with db.reading(Paths.of(config).products_db) as session:
        if session is None:
            return [one for one in groups if one.verdict in config.validation.publish]
        image = product_tables.Image
        rows = session.scalars(select(image).where(image.type == "pbcor")).all()
        # that retention deleted an image says nothing against its fluxes
        allowed = {
            one.group_id
            for one in rows
            if not publishing.unpublishable(
                product_tables.columns_of(one) | {"deleted_at": None}, config.validation
            )
        }
    return [one for one in groups if one.group_id in allowed]


def days_of(mid_mjd: float) -> set[int]:
    """Sidereal days that a group's sources may belong to."""
    turns = float(epochs.sidereal_turns(mid_mjd))
    return {int(np.floor(turns + aside)) for aside in (-_AROUND_TURNS, _AROUND_TURNS)}


def date_of_day(day: int) -> str:
    """UTC date on which a sidereal day begins."""
    return db.utc_of_mjd(float(epochs.mjd_of_turns(day)))[:10]


def _update_strip(
    config: Config, strip: str, usable: Sequence[MeasuredGroup], all_groups: Sequence[MeasuredGroup]
) -> tuple[list[int], int]:
    """Days of a strip that were made, and how many are as they were."""
    paths, by_day = Paths.of(config), defaultdict(list)
    for one in usable:
        if one.strip == strip:
            for day in days_of(one.mid_mjd):
                by_day[day].append(one)
    known = _known_days(paths, strip)
    for day in set(known) - set(by_day):
        remove(paths.epoch(strip, day))
        with db.writing(paths.sources_db, Base) as session:
            session.execute(delete(Epoch).where(Epoch.strip == strip, Epoch.sday == day))
    means, scaled_to = _reference(config, strip, by_day)
    of_means = hashlib.sha256(means.to_csv().encode()).hexdigest()
    made = [*(set(known) - set(by_day))]
    for day, mine in sorted(by_day.items()):
        inputs = _inputs(config, mine, of_means)
        state, reason = _state(config, strip, day, mine, all_groups)
        if day in known and known[day] == inputs and paths.epoch(strip, day).exists():
            _note_state(paths, strip, day, state, reason)
            continue
        table, about = _make_day(paths, strip, day, mine, means)
        about |= {"scaled_to": scaled_to, "inputs": inputs}
        write_table(paths.epoch(strip, day), table, about)
        row = Epoch(
            strip=strip,
            sday=day,
            state=state,
            reason=reason,
            groups=len(mine),
            sources=len(table),
            begin_mjd=min(one.mid_mjd for one in mine),
            end_mjd=max(one.mid_mjd for one in mine),
            scaled_to=scaled_to,
            constants=about["constants"],
            chi2=about["chi2"],
            scale_scatter=about["scale_scatter"],
            inputs=inputs,
            made_at=now(),
        )
        with db.writing(paths.sources_db, Base) as session:
            session.merge(row)
        made.append(day)
    return made, len(by_day) - len(set(made) & set(by_day))


def _known_days(paths: Paths, strip: str) -> dict[int, str]:
    with db.reading(paths.sources_db) as session:
        asked = select(Epoch.sday, Epoch.inputs).where(Epoch.strip == strip)
        return {} if session is None else dict(map(tuple, session.execute(asked)))


def _inputs(config: Config, groups: Sequence[MeasuredGroup], of_means: str) -> str:
    of_groups = sorted((one.group_id, one.checksum) for one in groups)
    words = json.dumps([_VERSION, of_means, of_groups, config.photometry.catalogue_scatter])
    return hashlib.sha256(words.encode()).hexdigest()


def _reference(
    config: Config, strip: str, by_day: Mapping[int, Sequence[MeasuredGroup]]
) -> tuple[pd.DataFrame, str]:
    """What fluxes are thought to be (source, flux_jy, error), and whose they are: own means of the
    first days when there are enough, where they are; the catalogue's for the rest."""
    paths, options = Paths.of(config), config.photometry
    names = sorted({one.reference for mine in by_day.values() for one in mine})
    tables = [_catalogue(paths, name, options.catalogue_scatter) for name in names]
    catalogue = pd.concat(tables).drop_duplicates("source", keep="last").reset_index(drop=True)
    first = sorted(by_day)[: options.reference_days]
    if len(first) < options.reference_days:
        return catalogue, "catalogue"
    words = hashlib.sha256(catalogue.to_csv().encode()).hexdigest()
    inputs = [_inputs(config, by_day[day], words) for day in first]
    path = paths.means(strip)
    if path.exists() and read_about(path).get("inputs") == inputs:
        means = read_table(path)
    else:
        days = [_make_day(paths, strip, day, by_day[day], catalogue)[0] for day in first]
        means = epochs.means_of(days)
        write_table(path, means, {"inputs": inputs, "days": first, "strip": strip})
    # a source that has none, because it varies, is not what the catalogue says either
    new = catalogue[~catalogue.source.isin(_seen_in(paths, by_day, first))]
    both = pd.concat([means, new]).sort_values("source").reset_index(drop=True)
    return both, f"own means of days {first[0]} to {first[-1]}"


def _seen_in(
    paths: Paths, by_day: Mapping[int, Sequence[MeasuredGroup]], days: Sequence[int]
) -> set[str]:
    files = sorted({paths.photometry(one.group_id) for day in days for one in by_day[day]})
    return set(query("SELECT DISTINCT source FROM {files}", files).source)


def _catalogue(paths: Paths, version: str, scatter: float) -> pd.DataFrame:
    """A reference's fluxes at 1.4 GHz stand for the image's: the day's scale takes the rest."""
    table = read_table(paths.reference(version))
    return table[["source", "flux_jy", "alpha"]].assign(error=scatter)


def _make_day(
    paths: Paths, strip: str, day: int, groups: Sequence[MeasuredGroup], reference: pd.DataFrame
) -> tuple[pd.DataFrame, dict]:
    """A day's table, in order of the sources' names, and what is said of it."""
    groups = sorted(groups, key=lambda one: one.group_id)
    tables = []
    for number, one in enumerate(groups):
        path = paths.photometry(one.group_id)
        about = read_about(path)
        words = {name: about[name] for name in _OF_IMAGE}
        tables.append(read_table(path).assign(group=number, **words))
    table = pd.concat(tables, ignore_index=True)
    table = table[epochs.sidereal_day(table.mjd.values, table.ra_deg.values) == day]
    table = table.sort_values(["source", "group"], kind="stable").reset_index(drop=True)
    names, source = np.unique(table.source.values.astype(str), return_inverse=True)
    thought = reference.set_index("source").reindex(names)
    expected_jy = thought.flux_jy.values.astype(float)
    if "alpha" in thought and len(table):  # the catalogue's, at its own frequency
        alpha = thought.alpha.fillna(0).values
        expected_jy = expected_jy * (float(table.freq_hz.median()) / 1.4e9) ** alpha
    group = table.group.values
    slopes = _slopes(table)
    fit = epochs.fit_day(
        table,
        source=source,
        group=group,
        ngroup=len(groups),
        slopes=slopes,
        reference_jy=expected_jy,
        reference_error=thought.error.fillna(1).values,
    )
    combined = epochs.combine(table, source=source, group=group, slopes=slopes, fit=fit)
    errors = fit.errors
    ids = np.array([one.group_id for one in groups])
    combined["tile"] = ids[combined.tile.values] if len(combined) else []
    combined.insert(0, "source", names)
    combined.insert(1, "sday", day)
    about = {
        "strip": strip,
        "sday": day,
        "groups": {
            one.group_id: {
                "checksum": one.checksum,
                "scale": round(float(np.exp(fit.scale[k])), 6),
                "scale_error": round(float(errors[k]), 6),
            }
            for k, one in enumerate(groups)
        },
        "beam": dict(zip(_BEAM_TERMS, np.round(fit.beam, 6).tolist(), strict=True)),
        "beam_error": dict(zip(_BEAM_TERMS, np.round(errors[-4:], 6).tolist(), strict=True)),
        "constants": fit.constants,
        "chi2": None if np.isnan(fit.chi2) else round(fit.chi2, 4),
        "scale_scatter": round(float(np.std(fit.scale)), 6) if len(fit.scale) else 0.0,
        "units": DAY_UNITS,
    }
    return combined[list(_DAY_COLUMNS)], about


def _slopes(table: pd.DataFrame) -> np.ndarray:
    """How the beam's response changes at a day's measurements (`beamfit.beam_slopes`); (n, 4)."""
    if not len(table):
        return np.zeros((0, 4))
    of_image = table[list(_OF_IMAGE)].median()
    drift_deg = SKY_ARCSEC_S / 3600 * of_image.exposure_s * np.cos(np.radians(of_image.app_dec_deg))
    return beam_slopes(
        table.east_deg.values,
        table.north_deg.values,
        freq_hz=of_image.freq_hz,
        drift_deg=drift_deg,
        bandwidth_hz=of_image.bandwidth_hz,
    )


def _state(
    config: Config,
    strip: str,
    day: int,
    mine: Sequence[MeasuredGroup],
    measured: Sequence[MeasuredGroup],
) -> tuple[str, str | None]:
    """Whether a day has all that it should, and why not."""
    used = {one.group_id for one in mine}
    left_out = [
        one.group_id
        for one in measured
        if one.strip == strip and day in days_of(one.mid_mjd) and one.group_id not in used
    ]
    done = {one.group_id for one in measured}
    waiting: list[str] = []
    failed: list[str] = []
    with db.reading(Paths.of(config).ingest_db) as session:
        group = queue_tables.Group
        if session is not None and mine:
            lowest, highest = (f(one.mid_mjd for one in mine) for f in (min, max))
            asked = select(group.group_id, group.mid_mjd, group.app_dec_deg, group.state).where(
                group.mid_mjd.between(lowest - 1, highest + 1)
            )
            for name, mjd, dec_deg, state in session.execute(asked):
                if name in done or dec_deg is None or abs(dec_deg - float(strip)) > _SAME_STRIP_DEG:
                    continue
                if day in days_of(mjd):
                    (failed if state in ("failed", "quarantined") else waiting).append(name)
    if waiting:
        return "waiting", f"{len(waiting)} groups are not done yet: {waiting[0]} ..."
    words = []
    if left_out:
        words.append(f"{len(left_out)} groups must not be published: {left_out[0]} ...")
    if failed:
        words.append(f"{len(failed)} groups failed: {failed[0]} ...")
    return ("partial", "; ".join(words)) if words else ("complete", None)


def _note_state(paths: Paths, strip: str, day: int, state: str, reason: str | None) -> None:
    with db.writing(paths.sources_db, Base) as session:
        row = session.get(Epoch, (strip, day))
        if (row.state, row.reason) != (state, reason):
            row.state, row.reason = state, reason


def _write_months(paths: Paths, strip: str, months: set[int]) -> None:
    """Days of each month in one file, by source."""
    days = sorted(_known_days(paths, strip))
    for month in sorted(months):
        mine = [paths.epoch(strip, day) for day in days if day // DAYS_A_MONTH == month]
        path = paths.lightcurves(strip, month)
        if not mine:
            path.unlink(missing_ok=True)
            continue
        table = query("SELECT * FROM {files} ORDER BY source, sday", mine)
        write_table(path, table, {"strip": strip, "month": month, "units": DAY_UNITS})


def curves_of(
    paths: Paths, strip: str
) -> tuple[list[str], np.ndarray, variability.Curves, np.ndarray]:
    """All light curves of a strip: names, days (nday,) from the first to the last, fluxes
    (nsource, nday), and the beam's response at each source on average (nsource,)."""
    files = paths.lightcurve_months(strip)
    if not files:
        nothing = variability.Curves(*np.zeros((3, 0, 0), np.float32))
        return [], np.zeros(0, int), nothing, np.zeros(0)
    asked = "SELECT source, avg(beam) AS beam FROM {files} GROUP BY source ORDER BY source"
    places = query(asked, files)
    names = places.source.tolist()
    index = pd.Series(np.arange(len(names), dtype=np.int32), names)
    ends = query("SELECT min(sday) AS first, max(sday) AS last FROM {files}", files)
    days = np.arange(int(ends["first"][0]), int(ends["last"][0]) + 1)
    flux = np.full((len(names), len(days)), np.nan, np.float32)
    error, of_day = np.full_like(flux, np.nan), np.zeros_like(flux)
    for path in files:
        part = query("SELECT source, sday, flux_jy, error_jy, systematic FROM {files}", [path])
        row, column = index[part.source.values].values, part.sday.values - days[0]
        flux[row, column], error[row, column] = part.flux_jy.values, part.error_jy.values
        of_day[row, column] = part.systematic.values
    return names, days, variability.Curves(flux, error, of_day), places.beam.values


def _update_numbers(config: Config, strip: str) -> int:
    """Numbers of all sources of a strip into the database; returns how many candidates there
    are."""
    paths = Paths.of(config)
    names, days, curves, beam = curves_of(paths, strip)
    if not names:
        return 0
    systematic = variability.systematics(curves, beam)
    table = variability.numbers(curves, systematic)
    table["systematic"] = systematic
    for name in ("dip_begin", "flare_begin"):
        table[name] += days[0]
    table = variability.candidates(table, config.photometry.most_false, date_of_day)
    table.insert(0, "source", names)
    places = pd.concat([read_table(paths.reference(v)) for v in paths.references(strip)])
    places = places.drop_duplicates("source", keep="last").set_index("source").reindex(names)
    table["ra_deg"], table["dec_deg"] = places.ra_deg.values, places.dec_deg.values
    table["reference_jy"] = places.flux_jy.values
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    with db.writing(paths.sources_db, Base) as session:
        session.execute(delete(Source).where(Source.strip == strip))
        session.execute(insert(Source), [row | {"strip": strip} for row in rows])
    log.info("%s: %d sources, systematics %.2f %%", strip, len(table), 100 * np.median(systematic))
    return int((table.reasons != "").sum())
