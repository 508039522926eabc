# Continuum imaging of DSA-110 drift scans. The stages are in rules/, one file each, in the order in
# which the data flow (contimg/chain.py has them as a table).
from snakemake.utils import min_version

min_version("9.20")


configfile: "config/config.yaml"


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/convert.smk"
include: "rules/concat.smk"
include: "rules/prepare.smk"
include: "rules/solve.smk"
include: "rules/register.smk"
include: "rules/select.smk"
include: "rules/apply.smk"
include: "rules/image.smk"
include: "rules/photometry.smk"
include: "rules/qa.smk"
include: "rules/index.smk"
include: "rules/day.smk"
include: "rules/mosaic.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        [result(group, "index") for group in SESSION.to_run()],
        tracts("over"),
    message:
        SESSION.summary()


# For runs with targets of their own: the watcher's.
rule over:
    input:
        tracts("over"),
    localrule: True
    message:
        "mosaics of what the sky has gone past: done"


for TARGET, GROUPS in SESSION.targets.items():

    rule:
        name:
            TARGET
        input:
            [result(g, "index") for g in GROUPS] if TARGET.startswith("group/") else imaged(GROUPS),
            [str(PATHS.day(TARGET[4:]))] if TARGET.startswith("day/") else [],
            tracts(TARGET),
        localrule: True
        message:
            "{rule}: done"
