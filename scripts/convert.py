"""Raw subband files to subband Measurement Sets in staging."""

from contimg.stages import convert
from contimg.stages.job import run_script

run_script(snakemake, convert.run)
