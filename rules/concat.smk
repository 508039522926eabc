# One full-band Measurement Set.


rule concat:
    input:
        subbands=rules.convert.output.subbands,
        converted=rules.convert.output.result,
        again=again("concat"),
    output:
        ms=directory(ms_path("{group}")),
        result=result("{group}", "concat"),
    log:
        logs("concat"),
    priority: 10
    group:
        "whole"
    conda:
        "../envs/contimg.yaml"
    # Of which it uses one: so that no more groups are staged than were reserved for.
    threads: CONFIG.conversion.workers
    resources:
        mem_mb=memory_mb(3000),
    message:
        "{wildcards.group}: concatenate"
    script:
        "../scripts/concat.py"
