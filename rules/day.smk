# A day's images in one plot.


rule day:
    input:
        done_on,
    output:
        plot=report(str(PATHS.day("{date}")), caption="../report/day.rst", category="Days"),
    log:
        str(PATHS.log("{date}", "day")),
    localrule: True
    conda:
        "../envs/contimg.yaml"
    message:
        "{wildcards.date}: plot the day"
    script:
        "../scripts/day.py"
