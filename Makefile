# Everything runs in .venv, which is made where it is missing or where the dependencies have changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_ARGS ?=

.PHONY: demo test slow lint format types setup clean reproduce-cifar100 reproduce-fashion-mnist

demo: $(VENV)/ready  ## Compare six position schemes on real digits: a few minutes on two cores.
	$(BIN)/mpvg compare

test: $(VENV)/ready  ## Everything but the slow tests.
	$(BIN)/python -m pytest -n 2 -m "not slow" $(TEST_ARGS)

slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow $(TEST_ARGS)

reproduce-cifar100: $(VENV)/ready  ## Table 2 of the paper: make reproduce-cifar100 DATA=cifar100.npz SLICE=600, until all is done.
	$(BIN)/python -W ignore benchmarks/reproduce_cifar100.py $(if $(DATA),--data $(DATA)) $(if $(SLICE),--slice $(SLICE)) $(ARGS)

reproduce-fashion-mnist: $(VENV)/ready  ## make reproduce-fashion-mnist DATA=FOLDER
	$(BIN)/python -W ignore benchmarks/reproduce_fashion_mnist.py $(if $(DATA),$(DATA),data) $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/ready
	$(BIN)/mypy

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "mpvg needs Python 3.10 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); } \
		|| { echo "could not make $(VENV): install venv for $(PYTHON) (Debian: apt install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
