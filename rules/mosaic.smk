# Tracts: the images of a sidereal day as one; all days as one. Groups that are done already are no
# inputs: their raw files may be gone, and the plan knows whether an image changed.


rule mosaic:
    input:
        to_come=tiles_to_come,
        again=piece_again,
    output:
        result=result("{tract}.{sday}", "mosaic"),
    log:
        str(PATHS.log("{tract}.{sday}", "mosaic")),
    priority: 95
    conda:
        "../envs/contimg.yaml"
    threads: 2
    resources:
        mem_mb=4000,
    params:
        piece=piece_json,
    message:
        "{wildcards.tract} on day {wildcards.sday}: mosaic"
    script:
        "../scripts/mosaic.py"


rule deep:
    input:
        days=days_of_tract,
    output:
        result=result("{tract}", "deep"),
    log:
        str(PATHS.log("{tract}", "deep")),
    priority: 96
    conda:
        "../envs/contimg.yaml"
    threads: 2
    resources:
        mem_mb=4000,
    message:
        "{wildcards.tract}: all days as one"
    script:
        "../scripts/deep.py"


rule difference:
    input:
        day=result("{tract}.{sday}", "mosaic"),
        deep=all_days,
    output:
        result=result("{tract}.{sday}", "difference"),
    log:
        str(PATHS.log("{tract}.{sday}", "difference")),
    priority: 97
    conda:
        "../envs/contimg.yaml"
    threads: 2
    resources:
        mem_mb=6000,
    message:
        "{wildcards.tract} on day {wildcards.sday}: what is new"
    script:
        "../scripts/difference.py"


rule catalogue:
    input:
        mosaic=mosaic_of,
    output:
        result=result("{mosaic}", "catalogue"),
    log:
        str(PATHS.log("{mosaic}", "catalogue")),
    priority: 98
    conda:
        "../envs/contimg.yaml"
    threads: 2
    resources:
        mem_mb=6000,
        runtime=int(3 * CONFIG.mosaics.finder_minutes + 20),
    message:
        "{wildcards.mosaic}: list of sources"
    script:
        "../scripts/catalogue.py"


# A map for sky browsers: thousands of small files, which are no outputs.
rule hips:
    input:
        mosaic=mosaic_of,
    output:
        result=result("{mosaic}", "hips"),
    log:
        str(PATHS.log("{mosaic}", "hips")),
    priority: 98
    conda:
        "../envs/contimg.yaml"
    threads: 2
    resources:
        mem_mb=4000,
    message:
        "{wildcards.mosaic}: map"
    script:
        "../scripts/hips.py"
