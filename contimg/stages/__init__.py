"""One module for each stage of a group: rules/x.smk -> scripts/x.py -> contimg/stages/x.py."""

import gc

# A stage's process imports much and lives for seconds: looking for circles of objects at the usual
# rate is a fifth of its start.
gc.set_threshold(200_000, 20, 100)
