# run, setup, test, lint, bench: each does the set-up it needs.
PYTHON ?= python3.11
CONFIG ?=
CONFIGFILES = config/config.yaml $(CONFIG)
SNAKEMAKE = .venv/bin/snakemake
CONTIMG = .venv/bin/contimg

# pip's programs, and the scripts that Snakemake starts, do not work in such a folder.
ifneq ($(words $(CURDIR)),1)
$(error $(CURDIR): clone it into a folder without spaces in its name)
endif

.PHONY: run setup test test-all lint docs bench clean

run: .venv/installed
	@$(CONTIMG) simulate --if-empty $(addprefix --configfile ,$(CONFIG))
	@status=0; $(SNAKEMAKE) --profile local --configfile $(CONFIGFILES) || status=$$?; \
	  $(CONTIMG) status $(addprefix --configfile ,$(CONFIG)); exit $$status

setup: .venv/installed

# editable_mode=compat: Snakemake finds logger plugins by listing modules, which import hooks do not show.
.venv/installed: envs/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r envs/requirements.txt
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	$(CONTIMG) selftest
	@touch $@

.venv/installed-dev: .venv/installed envs/dev.txt
	.venv/bin/pip install --quiet --disable-pip-version-check -r envs/dev.txt
	@touch $@

# Two files at a time: much of the time is the start of processes.
test: lint
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The long proofs, too: 300 groups, all of SLURM, CASA beside ours; every write of a run, five ways to lose it; the long
# fuzz.
test-all: lint
	CONTIMG_LONG=1 .venv/bin/python -m pytest

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-cache
	.venv/bin/mypy
	.venv/bin/codespell
	.venv/bin/snakefmt --check Snakefile rules
	$(SNAKEMAKE) --lint --config 'paths={incoming: config}' # some folder that is there

# The same pins for `--sdm conda`: Snakemake copies this file alone, so that it cannot name another.
envs/contimg.yaml: envs/requirements.txt
	{ sed '/- pip:/q' $@; grep -v '^#' $<  | sed 's/^/      - /'; } > $@.new
	mv $@.new $@

# The documentation as a site, in site/: every link within it is followed.
docs: .venv/installed-dev
	.venv/bin/mkdocs build --quiet

bench: .venv/installed-dev
	PYTHONPATH=. .venv/bin/python bench/start_up_scan.py
	PYTHONPATH=. .venv/bin/python bench/full_size.py
	PYTHONPATH=. .venv/bin/python bench/calibration.py
	PYTHONPATH=. .venv/bin/python bench/calibration.py field
	PYTHONPATH=. .venv/bin/python bench/imaging.py
	PATH=$(CURDIR)/.venv/bin:$$PATH PYTHONPATH=. .venv/bin/python bench/refinement.py
	PYTHONPATH=. .venv/bin/python bench/instrument.py
	PYTHONPATH=. .venv/bin/python bench/lightcurves.py
	PYTHONPATH=. .venv/bin/python bench/days.py
	PYTHONPATH=. .venv/bin/python bench/mosaics.py size
	PYTHONPATH=. .venv/bin/python bench/mosaics.py strip
	PYTHONPATH=. .venv/bin/python bench/mosaics.py days
	PYTHONPATH=. .venv/bin/python bench/api.py
	PYTHONPATH=. .venv/bin/python bench/scaling.py
	PYTHONPATH=. .venv/bin/python bench/scaling.py running
	PYTHONPATH=. .venv/bin/python bench/capacity.py
	PYTHONPATH=. .venv/bin/python bench/gates.py
	PYTHONPATH=. .venv/bin/python bench/catalogue.py

clean:
	rm -rf .venv build site *.egg-info
