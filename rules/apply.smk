# Calibrated data, in Jy.


rule apply:
    input:
        ms=ms_path("{group}"),
        converted=result("{group}", "convert"),
        prepared=result("{group}", "prepare"),
        chosen=chosen_set,
        again=again("apply"),
    output:
        result=result("{group}", "apply"),
        refined=result("{group}", "refine"),
    log:
        logs("apply"),
    priority: 60
    group:
        after_calibration
    conda:
        "../envs/contimg.yaml"
    threads: 2
    resources:
        mem_mb=memory_mb(6000),
    message:
        "{wildcards.group}: apply the calibration"
    script:
        "../scripts/apply.py"
