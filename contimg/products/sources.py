"""sources.sqlite3: which groups were measured, sidereal days of strips, sources and what their
light curves say."""

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DAY_STATES = ("complete", "partial", "waiting")
"""complete: all groups of the day that may be used are in it. partial: some failed, or must not be
published. waiting: some are not done yet."""


class Base(DeclarativeBase):
    """Tables of sources.sqlite3."""


class MeasuredGroup(Base):
    """A group's photometry, as it was when it was last looked at."""

    __tablename__ = "groups"
    group_id: Mapped[str] = mapped_column(primary_key=True)
    strip: Mapped[str] = mapped_column(index=True)
    mid_mjd: Mapped[float]
    verdict: Mapped[str]
    reference: Mapped[str]
    checksum: Mapped[str]
    first_sday: Mapped[int | None]  # of its sources' transits; null: it has none
    last_sday: Mapped[int | None]
    usable: Mapped[bool]  # its image may be published
    size: Mapped[int]
    changed_ns: Mapped[int]


class Detection(Base):
    """What a group's image shows and the reference does not have."""

    __tablename__ = "detections"
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[str] = mapped_column(index=True)
    strip: Mapped[str] = mapped_column(index=True)
    mid_mjd: Mapped[float]
    ra_deg: Mapped[float]
    dec_deg: Mapped[float]
    flux_jy: Mapped[float]
    error_jy: Mapped[float]


class Difference(Base):
    """A tract's day that was compared with other days."""

    __tablename__ = "differences"
    tract: Mapped[str] = mapped_column(primary_key=True)
    sday: Mapped[int] = mapped_column(primary_key=True)
    strip: Mapped[str]
    others: Mapped[int]  # days
    alone: Mapped[bool]  # there were none
    changed_ns: Mapped[int]


class Change(Base):
    """What a tract's day shows beyond its other days, or does not show any more."""

    __tablename__ = "changes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tract: Mapped[str] = mapped_column(index=True)
    sday: Mapped[int]
    strip: Mapped[str] = mapped_column(index=True)
    mid_mjd: Mapped[float]
    ra_deg: Mapped[float]
    dec_deg: Mapped[float]
    flux_jy: Mapped[float]
    error_jy: Mapped[float]
    snr: Mapped[float]
    new: Mapped[bool]  # the other days show nothing there


class Epoch(Base):
    """A sidereal day of a strip."""

    __tablename__ = "epochs"
    __table_args__ = (CheckConstraint(f"state IN {DAY_STATES}"),)
    strip: Mapped[str] = mapped_column(primary_key=True)
    sday: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]
    reason: Mapped[str | None]  # why it is not complete
    groups: Mapped[int]
    sources: Mapped[int]
    begin_mjd: Mapped[float]
    end_mjd: Mapped[float]
    scaled_to: Mapped[str]  # catalogue, or own means of which days
    constants: Mapped[int]
    chi2: Mapped[float | None]  # of the tiles' fit, a degree of freedom
    scale_scatter: Mapped[float]
    inputs: Mapped[str]  # checksum of everything that it was made of
    made_at: Mapped[str]


class Strip(Base):
    """What the numbers of a strip's sources are made of."""

    __tablename__ = "strips"
    strip: Mapped[str] = mapped_column(primary_key=True)
    inputs: Mapped[str]


class Source(Base):
    """A source of a strip's reference, and the numbers of its light curve
    (`photometry.variability`)."""

    __tablename__ = "sources"
    strip: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(primary_key=True)
    ra_deg: Mapped[float] = mapped_column(index=True)
    dec_deg: Mapped[float]
    reference_jy: Mapped[float]
    epochs: Mapped[int]
    mean_jy: Mapped[float | None]
    mean_error_jy: Mapped[float | None]
    median_error_jy: Mapped[float | None]
    systematic: Mapped[float]  # relative error beyond the noise, measured on constant sources
    eta: Mapped[float | None]
    eta_systematic: Mapped[float | None]
    v: Mapped[float | None]
    modulation: Mapped[float | None]
    sf_1: Mapped[float | None]
    sf_3: Mapped[float | None]
    sf_10: Mapped[float | None]
    sf_30: Mapped[float | None]
    dip: Mapped[float | None]
    dip_days: Mapped[int | None]
    dip_begin: Mapped[int | None]
    flare: Mapped[float | None]
    flare_days: Mapped[int | None]
    flare_begin: Mapped[int | None]
    false_alarms: Mapped[float | None] = mapped_column(index=True)
    reasons: Mapped[str]
