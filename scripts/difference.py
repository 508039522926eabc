"""What a day of a tract shows that its other days do not."""

from contimg.stages import difference
from contimg.stages.job import run_script

run_script(snakemake, difference.run)
