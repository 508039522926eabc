# Raw subband files to one full-band Measurement Set.


rule convert:
    input:
        files=ancient(raw_files),
        chosen=calibration_first,
        again=again("convert"),
    output:
        subbands=temp(directory(str(STAGING / "{group}"))),  # a Measurement Set for each; as one output for quick dry-runs
        result=result("{group}", "convert"),
    log:
        logs("convert"),
    group:
        "whole"
    conda:
        "../envs/contimg.yaml"
    threads: CONFIG.conversion.workers
    resources:
        mem_mb=memory_mb(5000),
    params:
        files=every_raw_file,
    message:
        "{wildcards.group}: convert subbands"
    script:
        "../scripts/convert.py"


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
    threads: CONFIG.conversion.workers  # of which it uses one: so that no more groups are staged than were reserved for
    resources:
        mem_mb=memory_mb(3000),
    message:
        "{wildcards.group}: concatenate"
    script:
        "../scripts/concat.py"
