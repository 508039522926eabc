"""Indexes as tables that an archive, or TOPCAT, can read."""

from pathlib import Path

from astropy.table import MaskedColumn, Table
from sqlalchemy import text

from contimg.config import Config
from contimg.errors import RequestError
from contimg.paths import Paths
from contimg.products import publishing
from contimg.products.tables import Base
from contimg.store import db
from contimg.store.files import replacing

_FORMATS = {".vot": "votable", ".xml": "votable", ".csv": "ascii.csv", ".ecsv": "ascii.ecsv"}
_UNITS = {
    "_deg": "deg",
    "_arcsec": "arcsec",
    "_jy": "Jy",
    "_hz": "Hz",
    "_s": "s",
    "_mjd": "d",
    "bytes": "byte",
}
# IVOA ObsCore 1.1: unit, UCD, utype without its prefix.
OBSCORE = {
    "dataproduct_type": ("", "meta.code.class", "ObsDataset.dataProductType"),
    "calib_level": ("", "meta.code;obs.calib", "ObsDataset.calibLevel"),
    "obs_collection": ("", "meta.id", "DataID.collection"),
    "obs_id": ("", "meta.id", "DataID.observationID"),
    "obs_publisher_did": ("", "meta.ref.ivoid", "Curation.publisherDID"),
    "access_url": ("", "meta.ref.url", "Access.reference"),
    "access_format": ("", "meta.code.mime", "Access.format"),
    "access_estsize": ("kbyte", "phys.size;meta.file", "Access.size"),
    "target_name": ("", "meta.id;src", "Target.name"),
    "s_ra": ("deg", "pos.eq.ra", "Char.SpatialAxis.Coverage.Location.Coord.Position2D.Value2.C1"),
    "s_dec": ("deg", "pos.eq.dec", "Char.SpatialAxis.Coverage.Location.Coord.Position2D.Value2.C2"),
    "s_fov": ("deg", "phys.angSize;instr.fov", "Char.SpatialAxis.Coverage.Bounds.Extent.diameter"),
    "s_region": ("", "pos.outline;obs.field", "Char.SpatialAxis.Coverage.Support.Area"),
    "s_resolution": ("arcsec", "pos.angResolution", "Char.SpatialAxis.Resolution.Refval.value"),
    "t_min": ("d", "time.start;obs.exposure", "Char.TimeAxis.Coverage.Bounds.Limits.StartTime"),
    "t_max": ("d", "time.end;obs.exposure", "Char.TimeAxis.Coverage.Bounds.Limits.StopTime"),
    "t_exptime": ("s", "time.duration;obs.exposure", "Char.TimeAxis.Coverage.Support.Extent"),
    "t_resolution": ("s", "time.resolution", "Char.TimeAxis.Resolution.Refval.value"),
    "em_min": ("m", "em.wl;stat.min", "Char.SpectralAxis.Coverage.Bounds.Limits.LoLimit"),
    "em_max": ("m", "em.wl;stat.max", "Char.SpectralAxis.Coverage.Bounds.Limits.HiLimit"),
    "em_res_power": ("", "spect.resolution", "Char.SpectralAxis.Resolution.ResolPower.refVal"),
    "o_ucd": ("", "meta.ucd", "Char.ObservableAxis.ucd"),
    "pol_states": ("", "meta.code;phys.polarization", "Char.PolarizationAxis.stateList"),
    "s_xel1": ("", "meta.number", "Char.SpatialAxis.numBins1"),
    "s_xel2": ("", "meta.number", "Char.SpatialAxis.numBins2"),
    "t_xel": ("", "meta.number", "Char.TimeAxis.numBins"),
    "em_xel": ("", "meta.number", "Char.SpectralAxis.numBins"),
    "pol_xel": ("", "meta.number", "Char.PolarizationAxis.numBins"),
    "facility_name": ("", "meta.id;instr.tel", "Provenance.ObsConfig.Facility.name"),
    "instrument_name": ("", "meta.id;instr", "Provenance.ObsConfig.Instrument.name"),
}


def export(config: Config, what: str, output: Path) -> int:
    """Write the index `what` to a VOTable or text file, by the name's ending; returns the number of
    rows.

    Raises RequestError for an index or a format that there is not.
    """
    paths, form = Paths.of(config), _FORMATS.get(output.suffix)
    of_database = {
        **dict.fromkeys([*Base.metadata.tables, *Base.views], paths.products_db),
        "caltables": paths.registry_db,
    }
    if what not in of_database or form is None:
        raise RequestError(
            f"{what} to {output.name}: choose one of {', '.join(of_database)}, and one of "
            f"{', '.join(_FORMATS)}"
        )
    publishing.check(config)
    with db.reading(of_database[what]) as session:
        found = None if session is None else session.execute(text(f"SELECT * FROM {what}"))
        names, rows = (
            ([], []) if found is None else (list(found.keys()), [list(row) for row in found])
        )
    if "access_url" in names:
        at = names.index("access_url")
        for row in rows:
            row[at] = Path(row[at].removeprefix("file://")).absolute().as_uri()
    table = Table()
    for name, values in zip(
        names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True
    ):
        empty = type(next((v for v in values if v is not None), ""))()
        table[name] = MaskedColumn(
            [empty if v is None else v for v in values], mask=[v is None for v in values]
        )
        unit, ucd, utype = OBSCORE.get(
            name, (next((u for end, u in _UNITS.items() if name.endswith(end)), ""), "", "")
        )
        table[name].unit = unit or None
        if what == "obscore":
            table[name].meta |= {"ucd": ucd, "utype": f"obscore:{utype}"}
    with replacing(output) as partial:
        table.write(partial, format=form)
    return len(rows)
