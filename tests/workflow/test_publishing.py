"""What others need to publish, install and deploy it: catalogue, environment, wheel, container."""

import ast
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import unquote, urlsplit

import casacore.tables as ct
import numpy as np
import pytest
import yaml
from astropy.io import fits
from prov.model import ProvDocument, ProvGeneration, ProvUsage
from rocrate.rocrate import ROCrate

from contimg.chain import STAGES
from contimg.store.files import checksum
from tests.conftest import CALIBRATOR_START, ROOT, TARGET_START
from tests.workflow.conftest import make_site

SITE_PACKAGES = Path(yaml.__file__).parents[1]


def pins() -> list[str]:
    lines = (ROOT / "envs" / "requirements.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_catalogue_finds_what_it_looks_for():
    asked = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(asked) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(asked["mandatory-flags"]) == {"desc", "flags"}
    assert asked["software-stack-deployment"] == {"conda": True}
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme
    assert "workflow" in readme
    for name in ("Snakefile", "config/README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md"):
        assert (ROOT / name).is_file()
    for rules in (ROOT / "rules").glob("*.smk"):
        said = rules.read_text()
        assert said.count("\n    script:") == said.count("\n    conda:"), rules
    for caption in re.findall(r'"\.\./report/(\w+)\.rst"', (ROOT / "rules/day.smk").read_text()):
        assert (ROOT / "report" / f"{caption}.rst").is_file()


def test_the_conda_environment_has_the_pins_and_the_pins_have_what_is_imported():
    environment = yaml.safe_load((ROOT / "envs" / "contimg.yaml").read_text())
    (named,) = [one for one in environment["dependencies"] if isinstance(one, dict)]
    assert named["pip"] == pins(), "make envs/contimg.yaml"
    there = {_plain(re.split(r"[=<>@ \[]", pin)[0]) for pin in pins()}
    of_module, lacking = packages_distributions(), {}
    for file in (*ROOT.glob("contimg/**/*.py"), *ROOT.glob("scripts/*.py")):
        for module in imported_by(file):
            distributions = {_plain(one) for one in of_module.get(module, [module])}
            if module not in sys.stdlib_module_names and not distributions & there:
                lacking.setdefault(module, file)
    assert lacking == {}


def imported_by(file: Path) -> set[str]:
    """Packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {one.name.split(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - {"contimg", "snakemake_logger_plugin_contimg"}


@pytest.fixture(scope="module")
def packages_alone(tmp_path_factory):
    """An environment of the pinned packages without this library: its python."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{SITE_PACKAGES}\n")  # whose own .pth are not followed
    return folder / "bin" / "python"


def clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def test_a_job_in_an_environment_of_packages_alone_finds_the_clone(
    packages_alone, tmp_path, incoming
):
    """As with --sdm conda, which this machine has no channel for: what a rule's script imports, in
    an environment that has packages and not the library, with what the workflow leaves in
    PYTHONPATH."""
    code = "import contimg.stages.image; print(contimg.__file__)"
    absent = subprocess.run(
        [packages_alone, "-c", code], cwd=tmp_path, env=clean(), capture_output=True, text=True
    )
    assert "No module named 'contimg'" in absent.stderr
    site = make_site(tmp_path, incoming)
    probe = tmp_path / "Snakefile"
    probe.write_text(
        f'include: "{ROOT}/Snakefile"\n\n\nrule probe:\n    output: "{tmp_path}/said"\n'
        f"    localrule: True\n    shell: 'cd / && {packages_alone} -c \"{code}\" > {{output}}'\n"
    )
    outcome = site.snakemake("--snakefile", str(probe), "--", "probe")
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert (tmp_path / "said").read_text().strip() == str(ROOT / "contimg" / "__init__.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"  # building leaves files in the source
    shutil.copytree(
        ROOT,
        clone,
        ignore=shutil.ignore_patterns("site", ".venv", ".snakemake", "data", "build", "*.egg-info"),
    )
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*command, folder, clone], check=True, capture_output=True)
    (built,) = folder.glob("contimg-*.whl")
    return built


def test_a_wheel_has_the_library_its_pages_and_the_logger(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        text = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    modules = {str(p.relative_to(ROOT)) for p in ROOT.glob("contimg/**/*.py")}
    pages = {str(p.relative_to(ROOT)) for p in ROOT.glob("contimg/web/*/*") if p.is_file()}
    assert modules | pages <= names
    assert "snakemake_logger_plugin_contimg/__init__.py" in names
    wanted = {
        _plain(re.split(r"[=<>@ \[;]", n)[0]) for n in re.findall("Requires-Dist: (.*)", text)
    }
    there = {_plain(pin.partition("==")[0]) for pin in pins()}
    assert wanted <= there


def test_the_wheel_runs_without_the_clone(wheel, packages_alone, tmp_path):
    """Beside the pinned packages; `test_the_wheel_in_an_empty_environment` installs these, too."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    command = "from contimg.cli import app; app()"
    outcome = subprocess.run(
        [packages_alone, "-c", command, "--help"],
        cwd=tmp_path,
        env=clean() | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "provenance" in outcome.stdout


@pytest.mark.long
def test_the_wheel_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "empty", with_pip=True)
    program = tmp_path / "empty" / "bin"
    packages = ["-r", ROOT / "envs" / "requirements.txt", wheel]
    subprocess.run(
        [program / "pip", "install", "--quiet", *packages], check=True, env=clean(), timeout=1800
    )
    outcome = subprocess.run(
        [program / "contimg", "--help"], cwd=tmp_path, env=clean(), capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "provenance" in outcome.stdout


def test_the_readme_shows_the_rules_as_they_hang_together(tmp_path, incoming):
    site = make_site(tmp_path, incoming)
    outcome = site.snakemake("-n", "--rulegraph", "mermaid-js")
    assert outcome.returncode == 0, outcome.stderr
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", outcome.stdout))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", outcome.stdout)}
    # without those that go round by one rule; the whole has a circle: a target's chain begins with
    # the tables of a calibrator group
    rules = set(names.values())
    direct = {
        (a, b) for a, b in edges if not any((a, c) in edges and (c, b) in edges for c in rules)
    }
    graph = "\n".join(
        ["```mermaid", "flowchart LR", *(f"    {a} --> {b}" for a, b in sorted(direct)), "```"]
    )
    assert graph in (ROOT / "README.md").read_text(), f"README.md lacks\n{graph}"


@pytest.mark.parametrize("name", ["crate", "crate.zip"])
def test_a_crate_has_an_image_and_all_that_it_comes_from(first_run, tmp_path, name):
    """A Process Run Crate; once checked with roc-validator against the profile, which needs a
    network: what it recommends beyond are addresses that this project does not have."""
    site, _ = first_run
    output = tmp_path / name
    outcome = site.contimg("provenance", TARGET_START, "--crate", str(output))
    assert outcome.returncode == 0, outcome.stderr
    folder = output
    if output.suffix:
        folder = tmp_path / "unpacked"
        shutil.unpack_archive(output, folder)
    crate = ROCrate(folder)
    assert crate.root_dataset["conformsTo"].id == "https://w3id.org/ro/wfrun/process/0.5"
    actions = {one.id: one for one in crate.get_by_type("CreateAction")}
    stages = site.paths.result(TARGET_START, "image").parent.glob(f"{TARGET_START}.*.json")
    stages = {path.name.split(".")[1] for path in stages} - {"refine", "field"}
    of_set = f"#calibration-of-{CALIBRATOR_START}"
    assert {id.lstrip("#") for id in actions} - {of_set[1:]} == stages & set(STAGES)
    assert {one["name"][-5:] for one in actions[of_set]["result"]} == {"bpcal", ".gcal"}
    (image,) = (one for one in actions["#image"]["result"] if one.id.endswith(".fits"))
    assert checksum(folder / image.id) == image["sha256"]
    assert fits.getheader(folder / image.id)["TELESCOP"] == "DSA-110"
    raw = [one for one in actions["#convert"]["object"] if one.id.endswith(".hdf5")]
    assert len(raw) == 16
    for one in raw:
        assert checksum(Path(unquote(urlsplit(one.id).path))) == one["sha256"]
    kinds = {one["description"][-1] for one in actions["#apply"]["object"] if "sha256" in one}
    assert kinds == {"B", "G"}
    document = ProvDocument.deserialize(folder / "prov.json", format="json")
    made = {str(one.args[0]): str(one.args[1]) for one in document.get_records(ProvGeneration)}
    used = {}
    for one in document.get_records(ProvUsage):
        used.setdefault(str(one.args[0]), set()).add(str(one.args[1]))
    ahead, seen = [next(name for name in made if name.endswith(".fits"))], set()
    while ahead:  # from the image back
        seen.add(name := ahead.pop())
        ahead += used[made[name]] - seen if name in made else ()
    assert sum(name.endswith(".hdf5") for name in seen) == 32  # its own, and the calibrator's
    again = site.contimg("provenance", TARGET_START, "--crate", str(output))
    assert again.returncode == 1
    assert "is there already" in again.stderr


@pytest.mark.long
def test_the_container_builds():
    """From a registry of base images; skipped where no such program works, or none is reached."""
    program = next((p for p in ("podman", "docker") if shutil.which(p)), None)
    if program is None or subprocess.run([program, "info"], capture_output=True).returncode:
        pytest.skip("NOT TESTED: neither podman nor docker works here")
    base = re.search(r"^FROM (\S+)", (ROOT / "Containerfile").read_text(), re.M).group(1)
    have = [program, "image", "inspect", base]
    if (
        subprocess.run(have, capture_output=True).returncode
        and subprocess.run([program, "pull", base], capture_output=True).returncode
    ):
        pytest.skip(f"NOT TESTED: {base} cannot be pulled here")
    build = [program, "build", "--file", "Containerfile", "--tag", "contimg-test", "."]
    outcome = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    said = subprocess.run([program, "run", "--rm", "contimg-test"], capture_output=True, text=True)
    assert "provenance" in said.stdout


OFFLINE = """
import socket, sys
def _no(*_, **__): raise OSError("no network")
socket.getaddrinfo = _no
import numpy as np
from pyuvdata import UVCal, UVData
ms, folder, *tables = sys.argv[1:]
data = UVData()
data.read(ms, file_type="ms", data_column="CORRECTED_DATA", freq_chans=range(4), run_check=False)
print(data.telescope.name, data.Nants_data)
for k, path in enumerate(tables):
    found, again = UVCal(), UVCal()
    found.read(path, file_type="ms")
    found.write_ms_cal(f"{folder}/{k}.cal")
    again.read(f"{folder}/{k}.cal", file_type="ms")
    for name in ("gain_array", "flag_array", "quality_array"):
        assert np.array_equal(getattr(found, name), getattr(again, name)), (path, name)
    assert np.isfinite(found.gain_array[~found.flag_array]).all()
    print(found.cal_style, found.gain_array.shape)
"""


def test_pyuvdata_reads_sets_and_tables_without_a_network(first_run, tmp_path):
    """It knows where the telescope is from the files, and writes the tables as it read them."""
    site, _ = first_run
    tables = [site.paths.caltable(CALIBRATOR_START, kind) for kind in "BG"]
    command = [sys.executable, "-c", OFFLINE, site.paths.ms(TARGET_START), tmp_path, *tables]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    said = outcome.stdout.splitlines()
    assert any(line.startswith("OVRO_MMA ") for line in said)
    assert sum(", 2)" in line for line in said) == 2
    with ct.table(f"{site.paths.ms(TARGET_START)}/SOURCE", ack=False) as source:
        name, place = source.getcell("NAME", 0), np.degrees(source.getcell("DIRECTION", 0))
    with ct.table(f"{site.paths.ms(TARGET_START)}/FIELD", ack=False) as field:
        assert name == field.getcell("NAME", 0)
        assert place == pytest.approx(np.degrees(field.getcell("PHASE_DIR", 0)[0]))
