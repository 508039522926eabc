# Everything into the databases: products first, the queue after (by the logger plugin).


rule index:
    input:
        imaged=result("{group}", "image"),
        plotted=result("{group}", "qa"),
        again=again("index"),
    output:
        result=result("{group}", "index"),
    log:
        logs("index"),
    priority: 90
    localrule: True
    conda:
        "../envs/contimg.yaml"
    resources:
        index_writer=1,
    message:
        "{wildcards.group}: index"
    script:
        "../scripts/index.py"


rule day:
    input:
        done_on,
    output:
        plot=report(str(PATHS.day("{date}")), category="Days"),
    log:
        str(PATHS.log("{date}", "day")),
    localrule: True
    conda:
        "../envs/contimg.yaml"
    message:
        "{wildcards.date}: plot the day"
    script:
        "../scripts/day.py"
