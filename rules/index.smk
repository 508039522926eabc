# Everything into the databases: products first, the queue after (by the logger plugin).


rule index:
    input:
        imaged=result("{group}", "image"),
        plotted=result("{group}", "qa"),
    output:
        result=result("{group}", "index"),
    log:
        logs("index"),
    localrule: True
    resources:
        index_writer=1,
    conda:
        "../envs/contimg.yaml"
    script:
        "../scripts/index.py"
