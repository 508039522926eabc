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
from pathlib import Path

import numpy as np
import pandas as pd
from sqlalchemy import delete, func, insert, select

from contimg.calibration.beamfit import beam_slopes
from contimg.clock import now
from contimg.config import Config
from contimg.paths import Paths
from contimg.photometry import epochs, variability
from contimg.products import publishing
from contimg.products import tables as product_tables
from contimg.products.references import STRIP_DEG, strip_declination
from contimg.products.sources import Base, Detection, Epoch, MeasuredGroup, Source, Strip
from contimg.queue import tables as queue_tables
from contimg.sky.catalogues import CATALOGUE_HZ
from contimg.sky.geometry import SKY_ARCSEC_S
from contimg.store import db
from contimg.store.files import checksum, lock, remove, write_json
from contimg.store.parquet import query, read_about, read_table, write_table

log = logging.getLogger(__name__)
DAYS_A_MONTH = 30
_AROUND_TURNS = 0.02  # a group's sources lie within so many turns of its meridian
_AT_ONCE = 500
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
        _note_usable(paths, groups, {one.group_id for one in usable})
        made = unchanged = found = 0
        strips = []
        for strip in sorted({one.strip for one in groups}):
            changed, same = _update_days(config, strip, usable, groups)
            made, unchanged = made + changed, unchanged + same
            if inputs := _write_months(config, strip):
                strips.append(strip)
                found += _update_numbers(config, strip, inputs)
        write_json(paths.lightcurves_at, {"at": now()})
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
            usable=False,
            **_transits(path),
            size=status.st_size,
            changed_ns=status.st_mtime_ns,
        )
        there.append(row)
        new.append(row)
    gone = set(known) - {one.group_id for one in there}
    with db.writing(paths.sources_db, Base) as session:
        altered = sorted(({one.group_id for one in new} & set(known)) | gone)
        for first in range(0, len(altered), _AT_ONCE):
            for table in (MeasuredGroup, Detection):
                some = altered[first : first + _AT_ONCE]
                session.execute(delete(table).where(table.group_id.in_(some)))
        found = [row for one in new for row in _detections(paths, one)]
        session.add_all([*new, *found])
        session.flush()
        session.expunge_all()
    return there


def _transits(path: Path) -> dict[str, int | None]:
    """First and last sidereal day of a group's measurements."""
    table = query("SELECT mjd, ra_deg FROM {files}", [path])
    days = epochs.sidereal_day(table.mjd.values.astype(float), table.ra_deg.values.astype(float))
    ends = (int(days.min()), int(days.max())) if len(days) else (None, None)
    return dict(zip(("first_sday", "last_sday"), ends, strict=True))


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
        names = ("group_id", "type", "mode", "science", "verdict", "set_status")
        rows = session.execute(
            select(*(getattr(image, name) for name in names)).where(image.type == "pbcor")
        )
        # that retention deleted an image says nothing against its fluxes
        allowed = {
            row.group_id
            for row in rows
            if not publishing.unpublishable({**row._mapping, "deleted_at": None}, config.validation)
        }
    return [one for one in groups if one.group_id in allowed]


def _note_usable(paths: Paths, groups: Sequence[MeasuredGroup], usable: set[str]) -> None:
    """Which groups count, for whoever asks the database."""
    changed = [one for one in groups if one.usable != (one.group_id in usable)]
    if not changed:
        return
    with db.writing(paths.sources_db, Base) as session:
        for one in changed:
            one.usable = one.group_id in usable
            session.merge(one)


def days_of(mid_mjd: float) -> set[int]:
    """Sidereal days that a group's sources may belong to, before they are measured."""
    turns = float(epochs.sidereal_turns(mid_mjd))
    return {int(np.floor(turns + aside)) for aside in (-_AROUND_TURNS, _AROUND_TURNS)}


def date_of_day(day: int, ra_deg: float) -> str:
    """UTC date on which a right ascension passes on a sidereal day."""
    return db.utc_of_mjd(float(epochs.mjd_of_turns(day + ra_deg / 360)))[:10]


def _by_day(groups: Sequence[MeasuredGroup], strip: str) -> dict[int, list[MeasuredGroup]]:
    found: dict[int, list[MeasuredGroup]] = defaultdict(list)
    for one in groups:
        if one.strip == strip and one.first_sday is not None:
            for day in range(one.first_sday, one.last_sday + 1):
                found[day].append(one)
    return found


def _update_days(
    config: Config, strip: str, usable: Sequence[MeasuredGroup], measured: Sequence[MeasuredGroup]
) -> tuple[int, int]:
    """Make the days of a strip that are not what they should be; how many were made, and how many
    were left as they are."""
    paths, by_day = Paths.of(config), _by_day(usable, strip)
    known, everything = _known_days(paths, strip), _by_day(measured, strip)
    absent = _not_measured(config, strip, {one.group_id for one in measured})
    means, of_means, scaled_to = _own_means(config, strip, by_day)
    made = 0
    for day, mine in sorted(by_day.items()):
        inputs = _inputs(config, mine, of_means)
        state, reason = _state(mine, everything[day], absent.get(day, []))
        was = known.get(day)
        if was and was.inputs == inputs and paths.epoch(strip, day).exists():
            if (was.state, was.reason) != (state, reason):
                with db.writing(paths.sources_db, Base) as session:
                    row = session.get(Epoch, (strip, day))
                    row.state, row.reason = state, reason
            continue
        reference = _reference(config, mine, means)
        table, about = _make_day(paths, strip, day, mine, reference)
        write_table(paths.epoch(strip, day), table, about | {"scaled_to": scaled_to})
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
        made += 1
    for day in set(known) - set(by_day):
        with db.writing(paths.sources_db, Base) as session:
            session.execute(delete(Epoch).where(Epoch.strip == strip, Epoch.sday == day))
        remove(paths.epoch(strip, day))
        made += 1
    return made, len(by_day) - made


def _known_days(paths: Paths, strip: str) -> dict[int, Epoch]:
    with db.reading(paths.sources_db) as session:
        rows = (
            [] if session is None else session.scalars(select(Epoch).filter_by(strip=strip)).all()
        )
        if session is not None:
            session.expunge_all()
    return {one.sday: one for one in rows}


def _inputs(config: Config, groups: Sequence[MeasuredGroup], of_means: str) -> str:
    of_groups = sorted((one.group_id, one.checksum) for one in groups)
    words = json.dumps([_VERSION, of_means, of_groups, config.photometry.catalogue_scatter])
    return hashlib.sha256(words.encode()).hexdigest()


def _own_means(
    config: Config, strip: str, by_day: Mapping[int, Sequence[MeasuredGroup]]
) -> tuple[pd.DataFrame | None, str, str]:
    """Own means of a strip's first days (source, flux_jy, error, constant), once there are so many;
    what they were made of; and in words."""
    paths, first = Paths.of(config), sorted(by_day)[: config.photometry.reference_days]
    if len(first) < config.photometry.reference_days:
        return None, "", "catalogue"
    of_days = [[day, sorted((one.group_id, one.checksum) for one in by_day[day])] for day in first]
    words = json.dumps([_VERSION, of_days, config.photometry.catalogue_scatter])
    inputs, path = hashlib.sha256(words.encode()).hexdigest(), paths.means(strip)
    if not path.exists() or read_about(path).get("inputs") != inputs:
        days = [
            _make_day(paths, strip, day, by_day[day], _reference(config, by_day[day], None))[0]
            for day in first
        ]
        about = {"inputs": inputs, "days": first, "strip": strip}
        write_table(path, epochs.means_of(days), about)
    return read_table(path), inputs, f"own means of days {first[0]} to {first[-1]}"


def _reference(
    config: Config, groups: Sequence[MeasuredGroup], means: pd.DataFrame | None
) -> pd.DataFrame:
    """What fluxes are thought to be (source, flux_jy, error, alpha): own means where there are
    some, the catalogue's for what the first days have not seen. A source that has no mean because
    it varies has none."""
    paths, scatter = Paths.of(config), config.photometry.catalogue_scatter
    tables = [
        read_table(paths.reference(version)) for version in sorted({g.reference for g in groups})
    ]
    table = pd.concat(tables).drop_duplicates("source", keep="last")
    catalogue = table[["source", "flux_jy", "alpha"]].assign(error=scatter)
    if means is None:
        return catalogue
    own = means[means.constant]
    return pd.concat([own, catalogue[~catalogue.source.isin(means.source)]])


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
    if len(table):  # the catalogue's, at its own frequency
        alpha = thought.alpha.fillna(0).values
        expected_jy = expected_jy * (float(table.freq_hz.median()) / CATALOGUE_HZ) ** alpha
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


def _not_measured(
    config: Config, strip: str, measured: set[str]
) -> dict[int, list[tuple[str, str]]]:
    """Groups of a strip that the queue knows and nobody measured, with their states, by day."""
    found: dict[int, list[tuple[str, str]]] = defaultdict(list)
    pointing_deg = strip_declination(Paths.of(config), strip)
    with db.reading(Paths.of(config).ingest_db) as session:
        if session is None:
            return found
        group, file = queue_tables.Group, queue_tables.SubbandFile
        # one that never was whole is where its files are
        of_files = (
            select(group.group_id, func.avg(file.mid_mjd), func.avg(file.app_dec_deg), group.state)
            .join(file, file.group_id == group.group_id)
            .where(group.mid_mjd.is_(None), file.mid_mjd.is_not(None))
            .group_by(group.group_id)
        )
        of_groups = select(group.group_id, group.mid_mjd, group.app_dec_deg, group.state).where(
            group.mid_mjd.is_not(None)
        )
        rows = [*session.execute(of_groups), *session.execute(of_files)]
    for name, mid_mjd, app_dec_deg, state in rows:
        if name not in measured and abs((app_dec_deg or 99) - pointing_deg) < STRIP_DEG:
            for day in days_of(mid_mjd):
                found[day].append((name, state))
    return found


def _state(
    mine: Sequence[MeasuredGroup],
    measured: Sequence[MeasuredGroup],
    absent: Sequence[tuple[str, str]],
) -> tuple[str, str | None]:
    """Whether a day has all that it should, and why not."""
    used = {one.group_id for one in mine}
    left_out = [one.group_id for one in measured if one.group_id not in used]
    failed = [name for name, state in absent if state in ("failed", "quarantined")]
    skipped = [name for name, state in absent if state == "completed"]
    waiting = [name for name, _ in absent if name not in (*failed, *skipped)]
    if waiting:
        return "waiting", f"{len(waiting)} groups are not done yet: {waiting[0]} ..."
    words = []
    if left_out:
        words.append(f"{len(left_out)} groups must not be published: {left_out[0]} ...")
    if failed:
        words.append(f"{len(failed)} groups failed: {failed[0]} ...")
    if skipped:
        words.append(
            f"{len(skipped)} groups were not measured: contimg reprocess {skipped[0]} --from image"
        )
    return ("partial", "; ".join(words)) if words else ("complete", None)


def _write_months(config: Config, strip: str) -> str:
    """Days of each month in one file, by source, where it is not so yet; returns what all of them
    are made of, or nothing when the numbers are of that already."""
    paths = Paths.of(config)
    months: dict[int, dict[str, str]] = defaultdict(dict)
    for day, one in sorted(_known_days(paths, strip).items()):
        months[day // DAYS_A_MONTH][str(day)] = one.inputs
    for path in paths.lightcurve_months(strip):
        if int(path.stem) not in months:
            remove(path)
    for month, days in months.items():
        path = paths.lightcurves(strip, month)
        if path.exists() and read_about(path).get("days") == days:
            continue
        table = query(
            "SELECT * FROM {files} ORDER BY source, sday",
            [paths.epoch(strip, int(day)) for day in days],
        )
        about = {"strip": strip, "month": month, "days": days, "units": DAY_UNITS}
        write_table(path, table, about)
    inputs = hashlib.sha256(
        json.dumps([_VERSION, months, config.photometry.most_false]).encode()
    ).hexdigest()
    with db.reading(paths.sources_db) as session:
        known = None if session is None else session.get(Strip, strip)
        return "" if known is not None and known.inputs == inputs else inputs


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
    index = pd.DataFrame({"source": names, "row": np.arange(len(names), dtype=np.int32)})
    ends = query("SELECT min(sday) AS first, max(sday) AS last FROM {files}", files)
    days = np.arange(int(ends["first"][0]), int(ends["last"][0]) + 1)
    flux = np.full((len(names), len(days)), np.nan, np.float32)
    error, of_day = np.full_like(flux, np.nan), np.zeros_like(flux)
    asked = "SELECT row, sday, flux_jy, error_jy, systematic FROM {files} JOIN names USING (source)"
    for path in files:
        part = query(asked, [path], tables={"names": index})
        row, column = part.row.values, part.sday.values - days[0]
        flux[row, column], error[row, column] = part.flux_jy.values, part.error_jy.values
        of_day[row, column] = part.systematic.values
    return names, days, variability.Curves(flux, error, of_day), places.beam.values


def _update_numbers(config: Config, strip: str, inputs: str) -> int:
    """Numbers of all sources of a strip into the database; returns how many candidates there
    are."""
    paths = Paths.of(config)
    names, days, curves, beam = curves_of(paths, strip)
    if not names:
        with db.writing(paths.sources_db, Base) as session:
            session.execute(delete(Source).where(Source.strip == strip))
            session.merge(Strip(strip=strip, inputs=inputs))
        return 0
    systematic = variability.systematics(curves, beam)
    table = variability.numbers(curves, systematic)
    table["systematic"] = systematic
    for name in ("dip_begin", "flare_begin"):
        table[name] += days[0]
    table.insert(0, "source", names)
    places = pd.concat([read_table(paths.reference(v)) for v in paths.references(strip)])
    places = places.drop_duplicates("source", keep="last").set_index("source").reindex(names)
    table["ra_deg"], table["dec_deg"] = places.ra_deg.values, places.dec_deg.values
    table = variability.candidates(table, config.photometry.most_false, date_of_day)
    table["reference_jy"] = places.flux_jy.values
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    with db.writing(paths.sources_db, Base) as session:
        session.execute(delete(Source).where(Source.strip == strip))
        session.execute(insert(Source), [row | {"strip": strip} for row in rows])
        session.merge(Strip(strip=strip, inputs=inputs))
    log.info("%s: %d sources, systematics %.2f %%", strip, len(table), 100 * np.median(systematic))
    return int((table.reasons != "").sum())
