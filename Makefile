# make demo    build the environment, train a small network, make it forget 100 images
# make test    the whole suite
# make check   style and types
# make site    the documentation, in site/index.html
# make fuzz    2,000 damaged files of each kind that is read, about two minutes
# make coverage  the whole suite again, slower, and the lines that it does not reach
# make grid    the paper's experiments, in the background; MINUTES=12: here, for so long
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test site fuzz coverage check format grid results clean

demo: $(VENV)/core
	$(BIN)/expunge demo

test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

fuzz: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --num 2000

# Apart from `test`: before Python 3.12, tracing lines slows the suite.
coverage: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

site: $(VENV)/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The pages are in $(CURDIR)/site/index.html. With search: $(BIN)/python -m http.server -d site"

grid: $(VENV)/dev
	$(BIN)/python -m experiments grid $(if $(MINUTES),--minutes $(MINUTES))

results: $(VENV)/dev
	$(BIN)/python -m experiments grid --collect
	$(BIN)/python -m experiments docs

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("expunge needs Python 3.11 or newer: make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

# The core and what report.html takes.
$(VENV)/core: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[report]'
	touch $@

$(VENV)/dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[all,dev,docs]'
	touch $@ $(VENV)/core
