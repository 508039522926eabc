"""An image with all that it comes from, as others exchange it: a Process Run Crate (RO-Crate), with
the same as W3C PROV (PROV-JSON) in it."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from contimg.chain import CHAIN
from contimg.errors import RequestError
from contimg.paths import Paths
from contimg.store.files import publish, remove
from contimg.telescope import TELESCOPE

_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_DONE = "http://schema.org/CompletedActionStatus"
_VERSION = "1.1"  # of RO-Crate, that the profile is on top of
_READS = {"convert": "raw", "apply": "tables"}  # what no stage of the group made
_JSON, _FITS = "application/json", "image/fits"
_HDF5, _TABLE = "application/x-hdf5", "application/x-casa-table"


@dataclass(frozen=True)
class _Item:
    """A file: in the crate by `name`, or only named, where it is."""

    id: str
    about: str
    kind: str
    sha256: str | None = None
    path: Path | None = None  # of one that goes into the crate


@dataclass(frozen=True)
class _Step:
    """What a stage read and made, and when."""

    stage: str
    begin: datetime
    end: datetime
    read: tuple[_Item, ...]
    made: tuple[_Item, ...]

    @property
    def id(self) -> str:
        """As a part of an address."""
        return self.stage.replace(" ", "-")


def write_crate(paths: Paths, found: Mapping[str, Any], output: Path) -> list[str]:
    """Write a crate of what `contimg.products.provenance.provenance` found of a group's image: a
    folder, or a ZIP file where `output` ends so. Returns the names of the files in it.

    In it are the image, the result of every stage, and the configuration; raw files and calibration
    tables are named with their checksums, where they are. Raises RequestError for what is no image
    of a group, and where something is at `output`.
    """
    if not found.get("images"):
        raise RequestError("a crate is of a group's image: those of a mosaic are named in `groups`")
    if found["warning"] or not found["stages"]:
        why = found["warning"] or "its stages' results are gone"
        raise RequestError(f"group {found['group']}: no crate: {why}")
    if output.exists():
        raise RequestError(f"{output} is there already: name another, or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.partial{output.suffix}")
    with tempfile.TemporaryDirectory() as folder:
        crate = _crate(paths, found, Path(folder))
        remove(partial)
        if output.suffix == ".zip":
            crate.write_zip(partial)
        else:
            crate.write(partial)
    publish(partial, output)
    return sorted(str(one.id) for one in crate.data_entities if "://" not in one.id)


def _crate(paths: Paths, found: Mapping[str, Any], folder: Path):
    """`folder` is for files that are made for it."""
    from rocrate.model import ContextEntity, DataEntity, SoftwareApplication
    from rocrate.rocrate import ROCrate

    shown, steps = _shown(found["images"]), _steps(paths, found, folder)
    versions = found["stages"][-1]["versions"]
    document = folder / "prov.json"
    document.write_text(_prov(steps, versions["contimg"]))
    crate = ROCrate(version=_VERSION)

    def named(id: str, type: str, **about: str):
        return crate.add(ContextEntity(crate, id, about | {"@type": type}))

    observatory = named("#observatory", "Organization", name=TELESCOPE.observatory)
    crate.name = f"{TELESCOPE.name} continuum image {Path(shown['path']).name}"
    crate.description = f"Group {found['group']}, {_words(shown)}, with what it comes from."
    rights = f"data of {TELESCOPE.observatory}: ask it before you publish them"
    crate.license = named("#rights", "CreativeWork", name="Rights", description=rights)
    crate.publisher = crate.creator = observatory
    root = crate.root_dataset
    root["author"] = observatory
    root["conformsTo"] = named(_PROFILE, "CreativeWork", name="Process Run Crate", version="0.5")
    about = {
        "name": "contimg",
        "description": "continuum images of drift scans",
        "softwareVersion": versions["contimg"],
        "identifier": found["commit"],
        "softwareRequirements": [f"{n} {v}" for n, v in sorted(versions.items())],
    }
    program = crate.add(SoftwareApplication(crate, f"ivo://{TELESCOPE.authority}/contimg", about))
    entities = {}
    known = _Item(document.name, "the same as W3C PROV", _JSON, path=document)
    for item in (known, *(one for step in steps for one in (*step.read, *step.made))):
        if item.id in entities:
            continue
        about = {
            "name": unquote(Path(item.id).name),
            "description": item.about,
            "encodingFormat": item.kind,
        }
        about |= {"sha256": item.sha256} if item.sha256 else {}
        entities[item.id] = (
            crate.add_file(item.path, item.id, properties=about)
            if item.path
            else crate.add(DataEntity(crate, item.id, about | {"@type": "File"}))
        )
    for step in steps:
        action = named(
            f"#{step.id}",
            "CreateAction",
            name=step.stage,
            description=f"{step.stage}, for group {found['group']}",
            startTime=step.begin.isoformat(timespec="seconds"),
            endTime=step.end.isoformat(timespec="seconds"),
            actionStatus=_DONE,
        )
        action["instrument"], action["agent"] = program, observatory
        for role, items in (("object", step.read), ("result", step.made)):
            mine = [entities[item.id] for item in items]
            action[role] = mine[0] if len(mine) == 1 else mine
        root.append_to("mentions", action)
    return crate


def _shown(images: list[dict]) -> dict:
    """The image that a group is looked at for: the one named, or the one corrected for the beam."""
    fits = [one for one in images if one["path"].endswith(".fits")]
    if not fits:
        raise RequestError(f"group {images[0]['group_id']} has no FITS image (imaging.skip_fits)")
    order = ("pbcor", "quick_pbcor")
    return min(fits, key=lambda one: (*order, one["type"]).index(one["type"]))


def _words(shown: Mapping) -> str:
    return (
        f"{shown['type']}, {1e3 * shown['noise_jy']:.3f} mJy/beam of noise, verdict "
        f"{shown['verdict']}"
    )


def _steps(paths: Paths, found: Mapping[str, Any], folder: Path) -> list[_Step]:
    """Every stage of the group, in order."""
    shown = _shown(found["images"])
    settings = folder / "configuration.json"
    settings.write_text(json.dumps(found["configuration"], indent=1))
    configuration = _Item(settings.name, "configuration of the run", _JSON, path=settings)
    name = Path(shown["path"]).name.replace(":", "-")  # for archives on any system
    image = _Item(name, _words(shown), _FITS, shown["checksum"], Path(shown["path"]))
    outside = {
        "raw": _raw(found["raw_files"]),
        "tables": [
            _Item(
                _uri(one["path"]), f"calibration table, kind {one['kind']}", _TABLE, one["sha256"]
            )
            for one in found["calibration"]["tables"]
        ],
    }
    steps, results, after = [], {}, {one.name: one.after for one in CHAIN}
    calibration = found["calibration"]
    others = calibration["raw_files"]
    if outside["tables"] and calibration["solved"] and others and isinstance(others, list):
        of_set = f"calibration of {calibration['set']}"
        steps.append(_step(of_set, calibration["solved"], _raw(others), outside["tables"]))
    for one in found["stages"]:
        stage = one["stage"]
        path = paths.result(found["group"], stage)
        about = f"what stage {stage} found"
        results[stage] = _Item(f"results/{stage}.json", about, _JSON, path=path)
        before = [results[name] for name in after[stage] if name in results]
        taken = (configuration, *outside.get(_READS.get(stage), ()), *before)
        made = (results[stage], image) if stage == "image" else (results[stage],)
        steps.append(_step(stage, one, taken, made))
    return steps


def _step(name: str, when: Mapping, read: Iterable[_Item], made: Iterable[_Item]) -> _Step:
    end = datetime.fromisoformat(when["finished_at"])
    return _Step(name, end - timedelta(seconds=when["seconds"]), end, tuple(read), tuple(made))


def _raw(files: Iterable[Mapping]) -> list[_Item]:
    return [
        _Item(_uri(one["path"]), f"raw subband {one['subband']:02d}", _HDF5, one["sha256"])
        for one in files
    ]


def _uri(path: str) -> str:
    return Path(path).absolute().as_uri()


def _prov(steps: list[_Step], version: str) -> str:
    """Steps as PROV-JSON: entities, activities, and who was at work."""
    from prov.model import ProvDocument

    document = ProvDocument()
    ours = document.add_namespace("contimg", f"ivo://{TELESCOPE.authority}/contimg/")
    agent = document.agent(
        ours["software"], {"prov:type": "prov:SoftwareAgent", ours["v"]: version}
    )
    for step in steps:
        activity = document.activity(ours[step.id], step.begin, step.end)
        document.wasAssociatedWith(activity, agent)
        for item in (*step.read, *step.made):
            about: dict = {"prov:label": Path(item.id).name}
            about |= {ours["sha256"]: item.sha256} if item.sha256 else {}
            document.entity(ours[item.id], about)
        for item in step.read:
            document.used(activity, ours[item.id])
        for item in step.made:
            document.wasGeneratedBy(ours[item.id], activity, step.end)
    return document.unified().serialize(format="json", indent=1)
