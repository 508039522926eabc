# Raw files to a Measurement Set for each subband.


rule convert:
    input:
        files=ancient(raw_files),
        chosen=calibration_first,
        again=again("convert"),
    output:
        # A Measurement Set for each; as one output for quick dry-runs.
        subbands=temp(directory(str(SESSION.staging / "{group}"))),
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
