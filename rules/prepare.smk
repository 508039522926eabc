# Validate and flag, in place.


rule prepare:
    input:
        ms=ms_path("{group}"),
        concatenated=result("{group}", "concat"),
    output:
        result=result("{group}", "prepare"),
    log:
        logs("prepare"),
    threads: 2
    conda:
        "../envs/contimg.yaml"
    script:
        "../scripts/prepare.py"
