"""The table of stages against what follows it: the Snakefile, scripts, modules, profiles."""

import importlib

import pytest
import yaml
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

from contimg.chain import CHAIN, LAST, STAGES, following, stage_of, stages_where
from contimg.paths import GROUP_PATTERN, GROUP_PLOTS, Paths
from tests.conftest import ROOT
from tests.workflow.conftest import make_site


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """The Snakefile as Snakemake reads it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "incoming").mkdir()
    site = make_site(folder, folder / "incoming")
    files = [ROOT / "config" / "config.yaml", site.configfile]
    patch = pytest.MonkeyPatch()
    patch.setattr("sys.argv", ["snakemake"])
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        made = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=files),
            snakefile=ROOT / "Snakefile",
        )
        found = made._workflow
        yield found, site.paths
    patch.undo()


def rule_of(workflow, stage):
    return workflow.get_rule(stage.rule or stage.name)


def plain(files) -> set[str]:
    """Names without the constraints of their wildcards."""
    return {str(file).replace(f"{{group,{GROUP_PATTERN}}}", "{group}") for file in files}


def results_among(paths: Paths, files) -> set[str]:
    """Stages whose results are among a rule's files; those that a function gives are not seen."""
    return {stage for stage in STAGES if str(paths.result("{group}", stage)) in plain(files)}


@pytest.mark.parametrize("stage", CHAIN, ids=lambda stage: stage.name)
def test_every_stage_is_a_rule_a_script_and_a_module(workflow, stage):
    found, paths = workflow
    rule = rule_of(found, stage)
    assert results_among(paths, rule.output) == {stage.name}
    assert (rule.name in found._localrules) == (not stage.on_node)
    assert (ROOT / "rules" / f"{rule.name}.smk").exists()
    script = (ROOT / "scripts" / f"{rule.name}.py").read_text()
    assert f"run_script(snakemake, {rule.name}.run)" in script
    assert callable(importlib.import_module(f"contimg.stages.{rule.name}").run)
    assert plain(rule.log) == {str(paths.log("{group}", rule.name))}


@pytest.mark.parametrize("stage", CHAIN, ids=lambda stage: stage.name)
def test_a_rule_takes_the_results_that_the_table_says(workflow, stage):
    """And no result of a stage that comes later."""
    found, paths = workflow
    taken = results_among(paths, rule_of(found, stage).input)
    by_function = {"caltables": {"register"}, "apply": {"caltables"}}.get(stage.name, set())
    assert set(stage.after) - by_function <= taken
    assert not taken & set(following(stage.name))


def test_every_plot_is_an_output(workflow):
    found, paths = workflow
    outputs = plain(found.get_rule("qa").output)
    assert {str(paths.qa("{group}", name)) for name in GROUP_PLOTS} <= outputs
    page = str(paths.qa("{group}", "calibration"))
    assert page in plain(found.get_rule("solve").output)


def test_priorities_rise_along_the_chain(workflow):
    """A group is finished before the next one is begun."""
    found, _ = workflow
    priorities = [rule_of(found, stage).priority for stage in CHAIN]
    assert priorities == sorted(priorities)
    assert len(set(priorities)) == len(priorities)


def test_profiles_name_rules_that_there_are(workflow):
    found, _ = workflow
    rules = {rule.name for rule in found.rules}
    for profile in (ROOT / "profiles").glob("*/config.yaml"):
        threads = yaml.safe_load(profile.read_text()).get("set-threads", {})
        assert threads.keys() <= rules, profile


def test_what_follows_from_the_table():
    assert following("caltables") == (
        *("caltables", "apply", "image", "photometry", "qa", "index"),
    )
    assert following("convert") == STAGES
    assert stage_of("select") == "caltables"
    assert stage_of("day") == "day"
    assert set(stages_where(on_node=False)) == {"register", "caltables", "index"}
    assert set(stages_where(calibrators=True)) == {"solve", "register"}
    assert LAST == "index"
    known = set()
    for stage in CHAIN:  # in order
        assert set(stage.after) <= known
        known.add(stage.name)
