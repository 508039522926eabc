# Everything into the databases: products first, the queue after (by the logger plugin).


rule index:
    input:
        imaged=result("{group}", "image"),
        measured=result("{group}", "photometry"),
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
