"""The index of products: Measurement Sets, images, QA artefacts."""

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint, delete
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from contimg import db


class Base(DeclarativeBase):
    """Tables of products.sqlite3."""


class MeasurementSet(Base):
    """A Measurement Set and the last stage it went through."""

    __tablename__ = "ms_index"
    __table_args__ = (CheckConstraint("status IN ('ok', 'failed', 'pruned')"),)
    path: Mapped[str] = mapped_column(primary_key=True)
    start_mjd: Mapped[float]
    end_mjd: Mapped[float]
    mid_mjd: Mapped[float]
    processed_at: Mapped[str]
    status: Mapped[str]
    stage: Mapped[str]
    stage_updated_at: Mapped[str]
    cal_applied: Mapped[str | None]  # name of the calibration set
    imagename: Mapped[str | None]


class Image(Base):
    """An image product."""

    __tablename__ = "images"
    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(unique=True)
    ms_path: Mapped[str] = mapped_column(ForeignKey("ms_index.path"), index=True)
    created_at: Mapped[str]
    type: Mapped[str]
    beam_major_arcsec: Mapped[float]
    beam_minor_arcsec: Mapped[float]
    beam_pa_deg: Mapped[float]
    noise_jy: Mapped[float]
    thermal_jy: Mapped[float]
    dynamic_range: Mapped[float]
    verdict: Mapped[str]  # good, warn, fail
    verdict_reasons: Mapped[str]
    science: Mapped[bool]
    flux_ratio: Mapped[float | None]  # median, to the catalogue
    flux_scatter: Mapped[float | None]
    offset_arcsec: Mapped[float | None]  # median
    expected_sources: Mapped[int]
    found_sources: Mapped[int]
    pbcor: Mapped[bool]


class QaArtifact(Base):
    """A QA plot."""

    __tablename__ = "qa_artifacts"
    __table_args__ = (UniqueConstraint("group_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    path: Mapped[str]
    created_at: Mapped[str]


def record_group(
    session: Session, group_id: str, ms: Mapping, images: list[tuple[str, str]], image: Mapping, artifacts: Mapping[str, Path]
) -> None:
    """Replace everything the index says about a group; its full images stay when it gets a quick look, and the other way round.

    ms         columns of ms_index
    images     (type, path) of every image on disk
    image      result of the image stage: beam, noise, what the catalogue says of it
    artifacts  QA plots by name
    """
    quick = Image.type.startswith("quick_")
    same = quick if images[0][0].startswith("quick_") else ~quick
    session.execute(delete(Image).where(Image.ms_path == ms["path"], same))
    session.execute(delete(QaArtifact).where(QaArtifact.group_id == group_id))
    session.merge(MeasurementSet(**ms))
    session.flush()
    same_names = ("beam_major_arcsec", "beam_minor_arcsec", "beam_pa_deg", "thermal_jy", "dynamic_range", "verdict", "science")
    check = image["catalogue"]
    common = {name: image[name] for name in same_names} | {
        "noise_jy": image["rms_jy"], "verdict_reasons": "; ".join(image["verdict_reasons"]), "ms_path": ms["path"],
        "flux_ratio": check["flux_ratio"], "flux_scatter": check["flux_scatter"], "offset_arcsec": check["offset_arcsec"],
        "expected_sources": check["expected"], "found_sources": check["found"],
    }  # fmt: skip
    session.add_all(
        Image(path=path, created_at=db.now(), type=kind, pbcor=kind.endswith("pbcor"), **common) for kind, path in images
    )
    session.add_all(
        QaArtifact(group_id=group_id, name=name, path=str(path), created_at=db.now()) for name, path in artifacts.items()
    )
