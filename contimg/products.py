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
    session: Session,
    group_id: str,
    ms: Mapping,
    images: list[tuple[str, str]],
    image: Mapping,
    artifacts: Mapping[str, Path],
) -> None:
    """Replace everything the index says about a group.

    ms         columns of ms_index
    images     (type, path) of every image on disk
    image      result of the image stage: beam and noise
    artifacts  QA plots by name
    """
    session.execute(delete(Image).where(Image.ms_path == ms["path"]))
    session.execute(delete(QaArtifact).where(QaArtifact.group_id == group_id))
    session.merge(MeasurementSet(**ms))
    session.flush()
    beam = image["beam_major_arcsec"], image["beam_minor_arcsec"], image["beam_pa_deg"]
    session.add_all(
        Image(
            path=path, ms_path=ms["path"], created_at=db.now(), type=kind, noise_jy=image["rms_jy"],
            pbcor=kind == "pbcor", beam_major_arcsec=beam[0], beam_minor_arcsec=beam[1], beam_pa_deg=beam[2],
        )
        for kind, path in images
    )  # fmt: skip
    session.add_all(
        QaArtifact(group_id=group_id, name=name, path=str(path), created_at=db.now())
        for name, path in artifacts.items()
    )
