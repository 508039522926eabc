"""The index of products: Measurement Sets, images, QA artefacts."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint, delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from contimg.clock import now
from contimg.telescope import TELESCOPE

# IVOA ObsCore 1.1, the mandatory columns and some more. Wavelengths in m, sizes in deg and arcsec,
# times MJD and s.
_OBSCORE = f"""
    SELECT
    'image' AS dataproduct_type, 3 AS calib_level, '{TELESCOPE.name} continuum' AS obs_collection,
    i.group_id AS obs_id,
    'ivo://{TELESCOPE.authority}/contimg?' || i.group_id || '/' || i.type AS obs_publisher_did,
    'file://' || i.path AS access_url,
    CASE WHEN i.path LIKE '%.fits' THEN 'image/fits' ELSE 'application/x-casa-image' END
    AS access_format,
    i.bytes / 1000 AS access_estsize, i.group_id AS target_name, i.centre_ra_deg AS s_ra,
    i.centre_dec_deg AS s_dec, i.diameter_deg AS s_fov,
    printf('CIRCLE ICRS %.6f %.6f %.4f', i.centre_ra_deg, i.centre_dec_deg, i.diameter_deg / 2)
    AS s_region,
    sqrt(i.beam_major_arcsec * i.beam_minor_arcsec) AS s_resolution, i.start_mjd AS t_min,
    i.end_mjd AS t_max, i.exposure_s AS t_exptime, i.exposure_s AS t_resolution,
    299792458.0 / (i.freq_hz + i.bandwidth_hz / 2) AS em_min,
    299792458.0 / (i.freq_hz - i.bandwidth_hz / 2) AS em_max,
    i.freq_hz / i.bandwidth_hz AS em_res_power,
    'phot.flux.density;em.radio.750-1500MHz' AS o_ucd, '/I/' AS pol_states, i.imsize AS s_xel1,
    i.imsize AS s_xel2, 1 AS t_xel, 1 AS em_xel, 1 AS pol_xel,
    '{TELESCOPE.observatory}' AS facility_name,
    '{TELESCOPE.name}' AS instrument_name, i.verdict AS verdict, i.cal_set AS calibration_set,
    i.set_status AS calibration_set_status
    FROM images i WHERE i.unpublishable IS NULL
    AND i.centre_ra_deg IS NOT NULL AND i.diameter_deg IS NOT NULL
    UNION ALL SELECT
    'image', 4, CASE m.kind WHEN 'deep' THEN '{TELESCOPE.name} deep'
    ELSE '{TELESCOPE.name} days' END, m.name,
    'ivo://{TELESCOPE.authority}/contimg?mosaic/' || m.name, 'file://' || m.path, 'image/fits',
    m.bytes / 2000, m.tract, m.centre_ra_deg, m.centre_dec_deg,
    max(m.width, m.height) * m.cell_arcsec / 3600, m.region,
    sqrt(m.beam_major_arcsec * m.beam_minor_arcsec), m.begin_mjd, m.end_mjd, NULL,
    (m.end_mjd - m.begin_mjd) * 86400, 299792458.0 / (m.freq_hz + m.bandwidth_hz / 2),
    299792458.0 / (m.freq_hz - m.bandwidth_hz / 2), m.freq_hz / m.bandwidth_hz,
    'phot.flux.density;em.radio.750-1500MHz', '/I/', m.width, m.height, 1, 1, 1,
    '{TELESCOPE.observatory}', '{TELESCOPE.name}', m.verdict, NULL, NULL
    FROM mosaics m WHERE m.path IS NOT NULL AND m.deleted_at IS NULL
    AND m.unpublishable IS NULL"""


class Base(DeclarativeBase):
    """Tables of products.sqlite3."""

    views: ClassVar = {"obscore": _OBSCORE}


class MeasurementSet(Base):
    """A Measurement Set and the last stage that it went through, or failed in."""

    __tablename__ = "ms_index"
    __table_args__ = (CheckConstraint("status IN ('ok', 'failed', 'pruned')"),)
    path: Mapped[str] = mapped_column(primary_key=True)
    group_id: Mapped[str] = mapped_column(index=True)
    start_mjd: Mapped[float]
    end_mjd: Mapped[float]
    mid_mjd: Mapped[float]
    processed_at: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str | None]  # of a failure
    stage: Mapped[str]
    stage_updated_at: Mapped[str]
    cal_applied: Mapped[str | None]  # name of the calibration set
    imagename: Mapped[str | None]
    bytes: Mapped[int | None]  # it and its group's images and plots, when they were indexed


class Image(Base):
    """An image product."""

    __tablename__ = "images"
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[str] = mapped_column(index=True)
    path: Mapped[str] = mapped_column(unique=True)
    ms_path: Mapped[str] = mapped_column(ForeignKey("ms_index.path"), index=True)
    created_at: Mapped[str]
    deleted_at: Mapped[str | None]  # by retention
    type: Mapped[str]
    mode: Mapped[str | None]
    backend: Mapped[str | None]
    beam_major_arcsec: Mapped[float]
    beam_minor_arcsec: Mapped[float]
    beam_pa_deg: Mapped[float]
    noise_jy: Mapped[float]
    thermal_jy: Mapped[float]
    dynamic_range: Mapped[float]
    verdict: Mapped[str]  # findings.LEVELS
    verdict_reasons: Mapped[str]
    science: Mapped[bool]
    flux_ratio: Mapped[float | None]  # median, to the catalogue
    flux_scatter: Mapped[float | None]
    offset_arcsec: Mapped[float | None]  # median
    offset_east_arcsec: Mapped[float | None]
    offset_north_arcsec: Mapped[float | None]
    expected_sources: Mapped[int]
    found_sources: Mapped[int]
    pbcor: Mapped[bool]
    centre_ra_deg: Mapped[float | None]  # ICRS
    centre_dec_deg: Mapped[float | None]
    diameter_deg: Mapped[float | None]  # of the beam down to imaging.beam_limit, or of the image
    imsize: Mapped[int | None]
    cell_arcsec: Mapped[float | None]
    freq_hz: Mapped[float | None]
    bandwidth_hz: Mapped[float | None]
    start_mjd: Mapped[float | None] = mapped_column(index=True)  # UTC
    end_mjd: Mapped[float | None]
    exposure_s: Mapped[float | None]
    flagged: Mapped[float | None]  # share of the visibilities
    subbands: Mapped[int | None]
    cal_set: Mapped[str | None]
    flux_scale: Mapped[str | None]
    # of cal_set now: active, or why it must not be used
    set_status: Mapped[str] = mapped_column(default="active")
    cal_checksums: Mapped[str | None]  # of its tables when they were applied
    # why it must not be published; null: it may (contimg.publishing)
    unpublishable: Mapped[str | None]
    antennas_lost: Mapped[str | None]  # names of those that took part and are not in it
    data_share: Mapped[float | None]  # of the group's visibilities
    catalogues: Mapped[str | None]  # checksums, JSON
    commit_id: Mapped[str | None]  # of the software
    config: Mapped[str | None]  # digest
    software: Mapped[str | None]  # versions, JSON
    checksum: Mapped[str | None]  # SHA-256
    bytes: Mapped[int | None]


class Mosaic(Base):
    """A tract on a sidereal day (kind `mosaic`), or over all days (`deep`)."""

    __tablename__ = "mosaics"
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    tract: Mapped[str] = mapped_column(index=True)
    strip: Mapped[str]
    sday: Mapped[int | None] = mapped_column(index=True)
    path: Mapped[str | None]  # null: no image of the day may be used
    weight_path: Mapped[str | None]
    checksum: Mapped[str | None]  # SHA-256
    bytes: Mapped[int | None]
    verdict: Mapped[str]  # the worst of its images' verdicts; none: no image
    inputs: Mapped[str]  # images, or days: used, reason, verdict, checksum; JSON
    used: Mapped[int]
    seen: Mapped[str]  # checksums of the images that there were, null: not to be published; JSON
    options: Mapped[str]  # digest of the configuration that it follows from
    created_at: Mapped[str]
    deleted_at: Mapped[str | None]  # by retention
    unpublishable: Mapped[str | None]  # why it must not be published; null: it may
    changed_ns: Mapped[int]  # its result's
    centre_ra_deg: Mapped[float]  # ICRS
    centre_dec_deg: Mapped[float]
    width: Mapped[int]  # pixels
    height: Mapped[int]
    cell_arcsec: Mapped[float]
    region: Mapped[str]  # corners, as ObsCore has them
    beam_major_arcsec: Mapped[float | None]
    beam_minor_arcsec: Mapped[float | None]
    coverage: Mapped[float | None]  # share of the tract's pixels
    noise_jy: Mapped[float | None]  # measured, where the weight is half of the highest or more
    expected_noise_jy: Mapped[float | None]  # as the weights have it
    noise_ratio: Mapped[float | None]  # measured to expected, everywhere
    begin_mjd: Mapped[float | None]  # UTC
    end_mjd: Mapped[float | None]
    freq_hz: Mapped[float | None]
    bandwidth_hz: Mapped[float | None]


class QaArtifact(Base):
    """A QA plot."""

    __tablename__ = "qa_artifacts"
    __table_args__ = (UniqueConstraint("group_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    path: Mapped[str]
    created_at: Mapped[str]
    checksum: Mapped[str | None]  # SHA-256


def record_group(
    session: Session, ms: MeasurementSet, images: Iterable[Image], artifacts: Iterable[QaArtifact]
) -> None:
    """Replace all that the index says about a group; its full images stay when it gets a quick
    look, and the other way round."""
    images = list(images)
    quick = Image.type.startswith("quick_")
    same = quick if images[0].type.startswith("quick_") else ~quick
    session.execute(delete(Image).where(Image.ms_path == ms.path, same))
    session.execute(delete(QaArtifact).where(QaArtifact.group_id == ms.group_id))
    session.merge(ms)
    session.flush()
    session.add_all([*images, *artifacts])


def images_of_day(session: Session, date: str) -> list[dict]:
    """Rows of the images (pbcor) of a day, UTC, in order of time."""
    query = select(Image).where(
        Image.type.in_(("pbcor", "quick_pbcor")), Image.group_id.startswith(date)
    )
    return [columns_of(row) for row in session.scalars(query.order_by(Image.start_mjd))]


def columns_of(row: DeclarativeBase) -> dict:
    """A row as a plain mapping."""
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


def note_stage(
    session: Session, path: str, group: str, stage: str, times: Mapping, reason: str | None = None
) -> None:
    """A group's Measurement Set went through a stage, or failed in it for a reason; what is known
    of it otherwise stays.

    times  start_mjd, end_mjd and mid_mjd
    """
    row = session.get(MeasurementSet, path)
    if row is None and None in times.values():  # a row says when it was observed
        return
    if row is None:
        row = MeasurementSet(path=path, group_id=group, processed_at=now(), **times)
        session.add(row)
    row.stage = stage
    row.stage_updated_at = now()
    row.reason = reason
    row.status = "failed" if reason else "ok"
