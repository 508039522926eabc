"""Pages of the documentation that are made from the code (a hook of mkdocs): command line,
configuration, API, databases, messages."""

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

import typer
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
_SKIPPED = {"LookupError", "NotImplementedError"}


def on_files(files, config):
    """Add the pages."""
    pages = {"cli": cli, "configuration": configuration, "api": api, "database": database}
    for name, text in (pages | {"messages": messages}).items():
        files.append(File.generated(config, f"reference/{name}.md", content=text()))
    files.append(File.generated(config, "notebook.md", content=notebook()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of the documentation (to the code, the configuration) lead to the repository, which
    has no address here: they are shown as names."""
    outside = r"\[([^\]]+)\]\((?:\.\./)+(?!pictures|decisions)[^)]+\)"
    return re.sub(outside, r"`\1`", markdown)


def _table(*rows: tuple) -> list[str]:
    """The first row is the heading."""
    head, *others = (
        [str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows
    )
    lines = [head, ["---"] * len(head), *others]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def notebook() -> str:
    """The notebook's cells with what they gave, as it is committed."""
    cells = json.loads((ROOT / "docs" / "notebooks" / "light_curve.ipynb").read_text())["cells"]
    lines = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                lines += [
                    f"![what the cell draws](data:image/png;base64,{data['image/png'].strip()})",
                    "",
                ]
            elif text := "".join(output.get("text", data.get("text/plain", []))):
                lines += ["```text", text.rstrip(), "```", ""]
    return "\n".join(lines)


def cli() -> str:
    """Every command with its arguments and options."""
    from contimg.cli import app

    lines = ["# Command line", "", "`contimg COMMAND --help` says the same.", ""]
    return "\n".join(lines + _commands(typer.main.get_command(app), "contimg"))


def _commands(group, name: str) -> list[str]:
    lines = []
    for word, command in sorted(group.commands.items()):
        called = f"{name} {word}"
        if hasattr(command, "commands"):
            lines += _commands(command, called)
            continue
        lines += [f"## {called}", "", (command.help or "").strip(), ""]
        rows = [("", "what", "default")]
        for one in command.params:
            default = (
                "" if one.default in (None, False, ()) or callable(one.default) else one.default
            )
            names = (
                f"`{one.name.upper()}`"
                if one.param_type_name == "argument"
                else ", ".join(f"`{o}`" for o in one.opts)
            )
            rows.append((names, getattr(one, "help", "") or "", default))
        lines += _table(*rows)
    return lines


def configuration() -> str:
    """The table of keys, as config/README.md has it."""
    from contimg.config import readme

    return readme()


def api() -> str:
    """Every route with its parameters."""
    from contimg.config import from_mapping
    from contimg.web.app import make_app

    lines = ["# API", "", "Of `contimg serve`; `/openapi.json` has it for programs.", ""]
    nowhere = from_mapping({"paths": dict.fromkeys(("products", "state"), "/nonexistent")})
    for path, methods in make_app(nowhere).openapi()["paths"].items():
        for method, route in methods.items():
            lines += [f"## {method.upper()} {path}", "", route.get("description", ""), ""]
            rows = [("parameter", "in", "type", "default", "what")]
            for one in route.get("parameters", []):
                schema = one["schema"]
                kinds = [s for s in schema.get("anyOf", [schema]) if s.get("type") != "null"]
                kind = ", ".join(map(str, kinds[0].get("enum", [kinds[0].get("type", "")])))
                about = one.get("description", schema.get("description", ""))
                rows.append((f"`{one['name']}`", one["in"], kind, schema.get("default", ""), about))
            lines += _table(*rows) if len(rows) > 1 else []
    return "\n".join(lines)


def database() -> str:
    """Every table of every database."""
    from contimg.calibration.registry import Base as Registry
    from contimg.products.sources import Base as Sources
    from contimg.products.tables import Base as Products
    from contimg.queue.tables import Base as Queue

    lines = ["# Databases", "", "SQLite, in `paths.databases`; written on one host only.", ""]
    for name, base in (
        ("ingest.sqlite3", Queue),
        ("cal_registry.sqlite3", Registry),
        ("products.sqlite3", Products),
        ("sources.sqlite3", Sources),
    ):
        lines += [f"## {name}", ""]
        for mapper in sorted(base.registry.mappers, key=lambda one: one.local_table.name):
            table = mapper.local_table
            about = " ".join((mapper.class_.__doc__ or "").split())
            lines += [f"### {table.name}", "", about, ""]
            lines += _table(
                ("column", "type", "key", "may be null"),
                *(
                    (
                        f"`{c.name}`",
                        c.type,
                        "primary" if c.primary_key else "",
                        "yes" if c.nullable else "",
                    )
                    for c in table.columns
                ),
            )
        lines += [f"View `{view}`: IVOA ObsCore 1.1.\n" for view in getattr(base, "views", {})]
    return "\n".join(lines)


def messages() -> str:
    """What the code refuses with, by kind of error, as it stands in the code; a … is a name or a
    number."""
    import contimg.errors as errors

    found = defaultdict(set)
    for file in sorted((ROOT / "contimg").glob("**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                kind, said = ast.unparse(node.exc.func), _words(node.exc.args[0])
                if kind.endswith(("Error", "NotNow")) and kind not in _SKIPPED and len(said) > 12:
                    found[kind].add(said)
    lines = [
        "# Messages",
        "",
        "Everything that contimg refuses with, by kind, as it is in the code; … stands for names "
        "and numbers. Most say what to do;",
        "[At 3 a.m.](../at-3-am.md) has those that operators meet.",
        "",
    ]
    for kind in sorted(found):
        about = (getattr(errors, kind, None).__doc__ or "") if hasattr(errors, kind) else ""
        lines += [f"## {kind}", "", " ".join(about.split()), ""]
        lines += [f"- {said}" for said in sorted(found[kind])] + [""]
    return "\n".join(lines)


def _words(node: ast.AST) -> str:
    """A message with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _plain(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _plain(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    return ""


def _plain(text: str) -> str:
    return re.sub(r"([*_<>\[\]])", r"\\\1", " ".join(text.split("\n")))
