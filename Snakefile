# Continuum imaging of DSA-110 drift scans. The stages are in rules/, in the order in which the data flow.
from snakemake.utils import min_version

min_version("9.20")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/convert.smk"
include: "rules/prepare.smk"
include: "rules/calibrate.smk"
include: "rules/image.smk"
include: "rules/index.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        [result(group, "index") for group in groups_to_run()],
    message:
        summary()


for TARGET, GROUPS in TARGETS.items():

    rule:
        name:
            TARGET
        input:
            [result(g, "index") for g in GROUPS] if TARGET.startswith("group/") else imaged(GROUPS),
            [str(PATHS.day(TARGET[4:]))] if TARGET.startswith("day/") else [],
        localrule: True
        message:
            "{rule}: done"
