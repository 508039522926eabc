# Plots of a group.


rule qa:
    input:
        ms=ms_path("{group}"),
        imaged=result("{group}", "image"),
        chosen=chosen_set,
        prepared=result("{group}", "prepare"),
        refined=result("{group}", "refine"),
        again=again("qa"),
    output:
        plots=[
            report(
                str(PATHS.qa("{group}", name)),
                caption=f"../report/{name}.rst",
                category="Groups",
                subcategory="{group}",
                labels={"plot": name},
            )
            for name in names.REPORTED_PLOTS
        ],
        others=[str(PATHS.qa("{group}", name)) for name in names.OTHER_PLOTS],
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
