# Solve a calibrator group, register its tables; choose a set for every group, apply it.


rule solve:
    input:
        ms=ms_path("{group}"),
        converted=result("{group}", "convert"),
        prepared=result("{group}", "prepare"),
    output:
        result=result("{group}", "solve"),
    log:
        logs("solve"),
    threads: 2
    conda:
        "../envs/contimg.yaml"
    script:
        "../scripts/solve.py"


rule register:
    input:
        solved=result("{group}", "solve"),
    output:
        result=result("{group}", "register"),
    log:
        logs("register"),
    localrule: True
    resources:
        index_writer=1,
    conda:
        "../envs/contimg.yaml"
    script:
        "../scripts/register.py"


rule select:
    input:
        registered=ancient(registered_first),
    output:
        result=result("{group}", "caltables"),
    params:
        mid_mjd=lambda wildcards: plan_of(wildcards).mid_mjd,
        app_dec_deg=lambda wildcards: plan_of(wildcards).app_dec_deg,
    log:
        logs("select"),
    localrule: True
    conda:
        "../envs/contimg.yaml"
    script:
        "../scripts/select_caltables.py"


rule apply:
    input:
        ms=ms_path("{group}"),
        prepared=result("{group}", "prepare"),
        chosen=ancient(result("{group}", "caltables")),
    output:
        result=result("{group}", "apply"),
    log:
        logs("apply"),
    threads: 2
    conda:
        "../envs/contimg.yaml"
    script:
        "../scripts/apply_caltables.py"
