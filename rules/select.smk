# A calibration set for every group.


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
        pointing=pointing,
    message:
        "{wildcards.group}: choose a calibration set"
    script:
        "../scripts/select.py"
