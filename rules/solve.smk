# A calibrator group's tables.


rule solve:
    input:
        ms=ms_path("{group}"),
        converted=result("{group}", "convert"),
        prepared=result("{group}", "prepare"),
        again=again("solve"),
    output:
        page=str(PATHS.qa("{group}", "calibration")),
        result=result("{group}", "solve"),
    log:
        logs("solve"),
    priority: 30
    group:
        "whole"
    conda:
        "../envs/contimg.yaml"
    threads: 2
    resources:
        mem_mb=memory_mb(8000),
    message:
        "{wildcards.group}: solve for bandpass and gains"
    script:
        "../scripts/solve.py"
