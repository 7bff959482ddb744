# Everything a newcomer types. Needs only Python (>= 3.10) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Re-install only when what is installed could have changed.
STAMP := $(VENV)/.installed
# Tested versions. constraints-transformers4.txt has transformers 4.57, constraints-lowest.txt
# the oldest that work; constraints-newest.txt takes the newest.
CONSTRAINTS ?= constraints-transformers5.txt
# Into the environment of the given Python; by uv where it is installed.
UV := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --python $(1),$(1) -m pip install) --quiet -c $(CONSTRAINTS)

.PHONY: install demo compare test unit matrix wheel docs check format clean

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	# `dev` brings what all tests need, `docs` what builds the site.
	$(call INSTALL,$(BIN)/python) -e ".[dev,docs]"
	touch $(STAMP)

# Build (once) the offline demo pool, merge it with every method, print the table.
demo: install
	$(BIN)/fusion-plugins demo run

# Every default method on the demo pool; report in outputs/compare (some minutes).
compare: install
	$(BIN)/fusion_bench --config-name compare modelpool=demo taskpool=demo

# One process per core, each with one thread: the models of the tests are too small for more.
# Each takes whole files, in the order that tests/conftest.py gives them.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
test: install
	$(PYTEST)

# Without the tests that start programs, browsers or pdflatex, or run the documentation.
unit: install
	$(PYTEST) -m "not slow"

# The unit tests and `make wheel` with every set of versions, each in an environment that is
# thrown away. With uv these cost no download and no room twice.
MATRIX_PYTHONS ?= 3.10 3.13
MATRIX_VERSIONS ?= lowest transformers4 newest
matrix:
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	for python in $(MATRIX_PYTHONS); do for versions in $(MATRIX_VERSIONS); do \
		echo "== Python $$python, $$versions"; \
		$(MAKE) unit wheel PYTHON=python$$python VENV=$$folder/venv \
			CONSTRAINTS=constraints-$$versions.txt; rm -rf $$folder/*; done; done

# The built wheel without the checkout or an extra: the command merges checkpoints that
# transformers 4 and 5 have saved.
SAVED := $(CURDIR)/tests/generations/saved
wheel: install
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(BIN)/python -m build --wheel --no-isolation --outdir $$folder > /dev/null; \
	$(PYTHON) -m venv $$folder; $(call INSTALL,$$folder/bin/python) $$folder/*.whl; \
	cd $$folder; bin/fusion_bench method=awd modelpool=CLIPVisionModelPool/_template \
		'+modelpool.models={_pretrained_: $(SAVED)/4/_pretrained_, a: $(SAVED)/5/aa, b: $(SAVED)/4/bb}' \
		merged_model_save_path=merged; test -s merged/model.safetensors

# The documentation site, in site/; warnings are errors.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Formatting, lint, types, and which room may import which; changes nothing.
check: install
	$(BIN)/black --check --quiet .
	$(BIN)/isort --check-only --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/lint-imports > /dev/null || $(BIN)/lint-imports
	$(BIN)/mypy

format: install
	$(BIN)/isort --quiet .
	$(BIN)/black --quiet .
	$(BIN)/ruff check --quiet --fix .

clean:
	rm -rf $(VENV) build dist outputs site
