# au_study. `make help` lists the targets. Every target sets up its environment first (once, in .venv) and can be repeated at will.

# Which Python makes the environment: PYTHON=python3.12. Without it, the first of these that is 3.11 to 3.13.
CANDIDATES = python3 python python3.11 python3.12 python3.13
FIND = for p in $(CANDIDATES); do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done
PYTHON ?= $(shell $(FIND))

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# An environment of your own (conda, container): AU_STUDY_PYTHON=$$(which python). Nothing is installed into it; it is only checked.
AU_STUDY_PYTHON ?=
# make reproduce: studies, profile and processes, and the options passed on as they are.
STUDIES ?=
PROFILE ?= quick
CORES ?=
ARGS ?=
# make test: how many notebooks run at once.
WORKERS ?= 2

ifeq ($(strip $(AU_STUDY_PYTHON)),)
RUN = PATH="$(abspath $(VENV))/bin:$$PATH" $(abspath $(VENV))/bin/python
SETUP = @test -n "$(PYTHON)" || { echo "au_study: no Python 3.11 to 3.13 found (tried $(CANDIDATES)). Name one: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }; \
        "$(PYTHON)" tools/environment.py "$(VENV)" --constraints "$(CONSTRAINTS)"
else
RUN = $(AU_STUDY_PYTHON)
SETUP = @$(AU_STUDY_PYTHON) tools/environment.py --check $(if $(filter test lint docs,$(MAKECMDGOALS)),--dev)
endif

# One place for what is rendered and cached, whatever folder a notebook runs in; no environment variable of the caller leaks in.
export AU_STUDY_CACHE ?= $(CURDIR)/cache
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test lint docs notebooks readme export hooks clean distclean

help:  ## list the targets
	@echo "au_study: facial Action Unit recognition, papers as notebooks. Targets:"; echo
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo; echo "Settings: PYTHON=python3.12  VENV=.venv  AU_STUDY_PYTHON=(your own environment)  STUDIES=...  PROFILE=smoke|quick|full  CORES=2  WORKERS=2"

setup:  ## make the environment in .venv (2 minutes, 2.2 GB; all other targets do this by themselves)
	$(SETUP)

reproduce: setup  ## train, evaluate and print the studies' tables; report in results/index.html (quick profile: under 20 minutes on 2 cores)
	@$(RUN) -m au_study.study.cli reproduce $(STUDIES) --profile $(PROFILE) $(if $(CORES),--cores $(CORES)) $(ARGS)

test: setup  ## lint, run every notebook, run every study in the smoke profile, run pytest (20 to 30 minutes on 2 cores, by their speed)
	@$(RUN) tools/run_tests.py --workers $(WORKERS)

lint: setup  ## check notebooks, exports, README and code style (under a minute)
	@$(RUN) tools/lint_notebooks.py

docs: setup  ## build the documentation into _docs, offline (about a minute)
	@$(RUN) tools/build_docs.py

notebooks: setup  ## run the library notebooks and store their outputs (minutes)
	@$(RUN) tools/execute_notebooks.py --workers $(WORKERS) $(NOTEBOOKS)

export: setup  ## write au_study/ from the notebooks (seconds)
	@$(RUN) -c "from nbdev.doclinks import nbdev_export; nbdev_export()" && echo "au_study: modules exported"

readme: setup  ## write README.md from nbs/index.ipynb
	@$(RUN) tools/readme.py

hooks: setup  ## install git hooks: no licensed face in a commit, notebooks merged cell by cell (see README, Contributing, for what they write)
	@$(RUN) tools/hooks.py

clean:  ## remove what the targets produced, but not results, caches or the environment
	rm -rf _proc _docs build jupyter_execute .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environment, too (results and caches stay)
	rm -rf $(VENV) au_study.egg-info
