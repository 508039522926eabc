# Image, correct for the primary beam, write FITS.

QUICK = CONFIG.imaging.mode == "quick"
CASA_PRODUCTS = directory(
    [str(PATHS.image("{group}", suffix, QUICK)) for suffix in names.CASA_IMAGES]
)
FITS_PRODUCTS = (
    []
    if CONFIG.imaging.skip_fits
    else [str(PATHS.image("{group}", s, QUICK)) for s in names.FITS_IMAGES]
)
SLANTED_PRODUCT = (
    [str(PATHS.image("{group}", names.SLANTED_FITS, QUICK))] if CONFIG.imaging.slanted_fits else []
)


rule image:
    input:
        ms=ms_path("{group}"),
        converted=result("{group}", "convert"),
        applied=result("{group}", "apply"),
        refined=result("{group}", "refine"),
        chosen=chosen_set,
        again=again("image"),
    output:
        casa=CASA_PRODUCTS,
        fits=FITS_PRODUCTS,
        slanted=SLANTED_PRODUCT,
        result=result("{group}", "image"),
    log:
        logs("image"),
    priority: 70
    group:
        after_calibration
    conda:
        "../envs/contimg.yaml"
    threads: SESSION.cores
    resources:
        mem_mb=memory_mb(6000),
    message:
        "{wildcards.group}: image"
    script:
        "../scripts/image.py"
