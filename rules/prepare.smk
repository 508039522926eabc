# Validate and flag, in place.


rule prepare:
    input:
        ms=ms_path("{group}"),
        concatenated=result("{group}", "concat"),
        again=again("prepare"),
    output:
        result=result("{group}", "prepare"),
    log:
        logs("prepare"),
    priority: 20
    group:
        "whole"
    conda:
        "../envs/contimg.yaml"
    threads: 2
    resources:
        mem_mb=memory_mb(6000),
    message:
        "{wildcards.group}: validate and flag"
    script:
        "../scripts/prepare.py"
