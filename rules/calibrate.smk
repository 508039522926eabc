# Solve a calibrator group, register its tables; choose a set for every group, apply it.


rule solve:
    input:
        ms=ms_path("{group}"),
        converted=result("{group}", "convert"),
        prepared=result("{group}", "prepare"),
        again=again("solve"),
    output:
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


rule register:
    input:
        solved=result("{group}", "solve"),
        again=again("register"),
    output:
        result=result("{group}", "register"),
    log:
        logs("register"),
    priority: 40
    localrule: True
    conda:
        "../envs/contimg.yaml"
    resources:
        index_writer=1,
    message:
        "{wildcards.group}: register the calibration set"
    script:
        "../scripts/register.py"


rule select:
    input:
        own=own_registration,
        registered=registered_first,
        again=again("caltables"),
    output:
        result=result("{group}", "caltables"),
    log:
        logs("select"),
    priority: 50
    localrule: True
    conda:
        "../envs/contimg.yaml"
    params:
        mid_mjd=lambda wildcards: plan_of(wildcards).mid_mjd,
        app_dec_deg=lambda wildcards: plan_of(wildcards).app_dec_deg,
    message:
        "{wildcards.group}: choose a calibration set"
    script:
        "../scripts/select_caltables.py"


rule apply:
    input:
        ms=ms_path("{group}"),
        converted=result("{group}", "convert"),
        prepared=result("{group}", "prepare"),
        chosen=chosen_set,
        again=again("apply"),
    output:
        result=result("{group}", "apply"),
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
        "../scripts/apply_caltables.py"
