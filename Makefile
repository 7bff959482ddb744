# Everything a newcomer types. Needs only Python (>= 3.10) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Re-install only when what is installed could have changed.
STAMP := $(VENV)/.installed
# Tested versions; constraints-lowest.txt has the oldest, /dev/null takes the newest.
CONSTRAINTS ?= constraints.txt

.PHONY: install demo compare test unit docs check format clean

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	# `dev` brings what all tests need, `docs` what builds the site.
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[dev,docs]"
	touch $(STAMP)

# Build (once) the offline demo pool, merge it with every method, print the table.
demo: install
	$(BIN)/fusion-plugins demo run

# Every default method on the demo pool; report in outputs/compare (some minutes).
compare: install
	$(BIN)/fusion_bench --config-name compare modelpool=demo taskpool=demo

# One process per core, each with one thread: the models of the tests are too small for more.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Without the tests that start programs, browsers or pdflatex, or run the documentation.
unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

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
