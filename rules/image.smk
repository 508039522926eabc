# Image, correct for the primary beam, write FITS; plots.

QUICK = CONFIG.imaging.mode == "quick"
CASA_PRODUCTS = directory(
    [str(PATHS.image("{group}", suffix, QUICK)) for suffix in names.CASA_IMAGES]
)
FITS_PRODUCTS = (
    []
    if CONFIG.imaging.skip_fits
    else [str(PATHS.image("{group}", s, QUICK)) for s in names.FITS_IMAGES]
)


rule image:
    input:
        ms=ms_path("{group}"),
        converted=result("{group}", "convert"),
        applied=result("{group}", "apply"),
        chosen=chosen_set,
        again=again("image"),
    output:
        casa=CASA_PRODUCTS,
        fits=FITS_PRODUCTS,
        result=result("{group}", "image"),
    log:
        logs("image"),
    priority: 70
    group:
        after_calibration
    conda:
        "../envs/contimg.yaml"
    threads: CORES
    resources:
        mem_mb=memory_mb(6000),
    message:
        "{wildcards.group}: image"
    script:
        "../scripts/image.py"


rule qa:
    input:
        ms=ms_path("{group}"),
        imaged=result("{group}", "image"),
        chosen=chosen_set,
        prepared=result("{group}", "prepare"),
        again=again("qa"),
    output:
        plots=report(
            [str(PATHS.qa("{group}", name)) for name in names.REPORTED_PLOTS],
            category="Groups",
            subcategory="{group}",
        ),
        result=result("{group}", "qa"),
    log:
        logs("qa"),
    priority: 80
    group:
        after_calibration
    conda:
        "../envs/contimg.yaml"
    resources:
        mem_mb=memory_mb(4000),
    message:
        "{wildcards.group}: plot"
    script:
        "../scripts/qa.py"
