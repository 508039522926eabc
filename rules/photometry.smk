# Fluxes of all known sources in the image. Its tables are no outputs: a quick look has none, nor has
# an image that an earlier contimg made.


rule photometry:
    input:
        converted=result("{group}", "convert"),
        refined=result("{group}", "refine"),
        imaged=result("{group}", "image"),
        again=again("photometry"),
    output:
        result=result("{group}", "photometry"),
    log:
        logs("photometry"),
    priority: 75
    group:
        after_calibration
    conda:
        "../envs/contimg.yaml"
    threads: 2
    resources:
        mem_mb=memory_mb(3000),
    message:
        "{wildcards.group}: photometry"
    script:
        "../scripts/photometry.py"
