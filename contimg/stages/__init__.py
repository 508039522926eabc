"""One module for each stage of a group: rules/x.smk -> scripts/x.py -> contimg/stages/x.py."""
