"""The stages of a group, one row each: what everybody who knows of stages takes it from.

Rules, results, logs, the queue, the plugin, retention, provenance and the page follow this table;
tests/test_chain.py holds the Snakefile against it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage: its result is results/{group}.{name}.json.

    after        stages whose results it takes
    rule         its rule's name, where it is another one
    on_node      a cluster's node does it; the others need the databases, and run beside them
    calibrators  only calibrator groups have it
    uses_ms      it reads or writes the Measurement Set
    """

    name: str
    after: tuple[str, ...]
    rule: str = ""
    on_node: bool = True
    calibrators: bool = False
    uses_ms: bool = False


# In the order in which a calibrator group goes through them. A target chooses its set (`caltables`)
# before anything is done with its data.
CHAIN = (
    Stage("convert", after=()),
    Stage("concat", after=("convert",), uses_ms=True),
    Stage("prepare", after=("concat",), uses_ms=True),
    Stage("solve", after=("prepare",), calibrators=True, uses_ms=True),
    Stage("register", after=("solve",), on_node=False, calibrators=True),
    Stage("caltables", after=("register",), rule="select", on_node=False),
    Stage("apply", after=("prepare", "caltables"), uses_ms=True),
    Stage("image", after=("apply",), uses_ms=True),
    Stage("photometry", after=("image",)),
    Stage("qa", after=("image",), uses_ms=True),
    Stage("index", after=("image", "photometry", "qa"), on_node=False),
)
STAGES = tuple(stage.name for stage in CHAIN)
FIRST, LAST = STAGES[0], STAGES[-1]
MAKING_MS = ("convert", "concat")
"""Stages that make a Measurement Set of raw files; all others need none."""


def stages_where(**values: bool) -> tuple[str, ...]:
    """Names of the stages with these values, for example `on_node=True`."""
    return tuple(s.name for s in CHAIN if all(getattr(s, k) == v for k, v in values.items()))


def stage_of(rule: str) -> str:
    """The stage of a rule; a rule that is no stage (`day`) is its own."""
    return next((stage.name for stage in CHAIN if rule in (stage.rule, stage.name)), rule)


def following(name: str) -> tuple[str, ...]:
    """A stage and all that come of its result, in order."""
    found = {name}
    for stage in CHAIN:
        if found.intersection(stage.after):
            found.add(stage.name)
    return tuple(stage for stage in STAGES if stage in found)
