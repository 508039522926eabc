"""The documentation as a site: it builds, every link within it leads somewhere, what it quotes is
in the code."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "light_curve.ipynb"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--site-dir", folder]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert outcome.returncode == 0, outcome.stderr[-4000:]
    assert "WARNING" not in outcome.stderr
    return folder


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("index", "The life of a group"),
        ("at-3-am", "contimg retry"),
        ("is-my-image-right", "May it be published?"),
        ("notebook", "data:image/png;base64"),
        ("reference/cli", "contimg registry retire"),
        ("reference/configuration", "imaging.imsize"),
        ("reference/api", "GET /api/images"),
        ("reference/database", "ingest_queue"),
        ("reference/messages", "truncated (… of … MB)"),
    ],
)
def test_a_page_is_there_with_what_it_is_for(site, page, words):
    assert words in (site / f"{page}.html").read_text()


def test_every_picture_is_shown_somewhere():
    pages = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    said = "".join(page.read_text() for page in pages)
    kept = {p.name for p in (ROOT / "docs" / "pictures").glob("*.[ps][nv]g")}
    assert {name for name in kept if f"pictures/{name}" not in said} == set()


def test_what_operators_are_told_is_what_the_code_says():
    """First column of the table: each piece of twelve letters and more, between what is filled
    in."""
    said = []
    for file in ROOT.glob("contimg/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    said = " ".join("\n".join(said).split())
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "at-3-am.md").read_text(), re.M)
    quoted = [words for row in rows for words in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 15
    for words in quoted:
        pieces = re.split(r"\.\.\.|[A-Z]{4,}(?:\.[A-Z]+)?|\d+(?:\.\d+)?|\bN\b", words)
        for piece in pieces:
            if len(piece := piece.strip(" ():")) >= 12:
                assert piece in said, f"{piece!r} is said nowhere"


def test_the_notebook_was_run_from_top_to_bottom_without_an_error():
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert str(ROOT) not in NOTEBOOK.read_text()


@pytest.mark.long
def test_the_notebook_runs():
    """Raw files to a light curve: it asserts by itself that the flare is found, 1.5 times, to
    0.1."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": ROOT}}).execute()
