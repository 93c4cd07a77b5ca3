SUITABLE = import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)
PIP = .venv/bin/python -m pip --disable-pip-version-check

# What make results-small compares, on text in corpus/ and corpora/ (docs/compare.md)
RUNG = --config=configs/ladder.py:rung=0
SMALL = .venv/bin/python main.py compare $(RUNG) --methods=small,he,wesar_wide,rescaled_rates_wide \
	--learning_rates=1e-3,1e-2,1e-1 --seeds=1,2 --workdir=runs/results-small

.PHONY: help train test parity soak bench results-small lint clean

help:
	@echo "make train   train a small model on this machine: makes .venv at first, then runs configs/quickstart.py"
	@echo "make test    lint, then the whole test suite"
	@echo "make parity  installs PyTorch, transformers and lm-evaluation-harness, then compares with them"
	@echo "make soak    what make test does in small: random histories, healthy runs, spoilt files, 100 kills"
	@echo "make bench   speed as ratios, each beside its goal: ten minutes, on a machine that does nothing else"
	@echo "make results-small  a reduced grid of methods and its report: about six minutes on two cores"
	@echo "make lint    ruff and mypy"
	@echo "make clean   remove .venv and every cache; runs/ stays"
	@echo "Another Python than the first suitable one in PATH: make train PYTHON=/path/to/python"

train: .venv/installed
	@.venv/bin/python main.py --config=configs/quickstart.py --workdir=runs/quickstart

test: lint
	@.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --ignore=tests/parity

parity: .venv/installed-parity
	@.venv/bin/python -m pytest tests/parity

soak: .venv/installed-dev
	@.venv/bin/python -m tests.diagnose.fuzz 2000
	@.venv/bin/python -m tests.diagnose.healthy 60
	@.venv/bin/python -m tests.faults.fuzz 10000
	@.venv/bin/python -m tests.faults.fuzz bytes
	@.venv/bin/python -m tests.faults.soak runs/soak runs/soak.jsonl

bench: .venv/installed-dev
	@.venv/bin/python benchmarks/speed.py $(if $(NANODO),--nanodo=$(NANODO))

results-small: .venv/installed runs/ladder-2048.json
	@$(SMALL) --cells=1/2 >runs/results-small.log & $(SMALL) --cells=0/2; wait
	@$(SMALL)

runs/ladder-2048.json: | .venv/installed
	@.venv/bin/python main.py data tokenizer $(RUNG) --vocabulary=2048 --out=$@

lint: .venv/installed-dev
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

.venv/installed: requirements.txt pyproject.toml
	@"$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { echo "no suitable Python found: install 3.11 or newer (on" \
		"Debian with python3-venv), or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Installing into .venv with $$($(PYTHON) --version), once: 1.2 GB, one to five minutes ..."
	@"$(PYTHON)" -m venv .venv
	@$(PIP) install -qq --editable .
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@echo "Installing the test tools into .venv, once: less than a minute ..."
	@$(PIP) install -qq --requirement requirements-dev.txt
	@touch $@

.venv/installed-parity: .venv/installed-dev pyproject.toml
	@echo "Installing PyTorch, transformers and lm-evaluation-harness into .venv, once: 2 to 4 GB, some minutes ..."
	@$(PIP) install -qq --editable ".[parity]"
	@touch $@

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .mypy_cache build *.egg-info
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
