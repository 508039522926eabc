# A calibrator group's tables into the registry.


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
