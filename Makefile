# Each target is what a user would type, inside a virtual environment made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export OMP_NUM_THREADS ?= 1
# Test processes: two fill two cores; distributed tests start up to 4 ranks of their own.
WORKERS ?= 2

.PHONY: demo test test-fast lint docs bench clean

demo: $(READY)
	@bash tools/demo.sh $(BIN)

test: $(READY)
	# files in the order of their names: the slow ones (distributed, integration) start first, none is left for the end
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: $(READY)
	$(BIN)/python -m pytest tests/unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_CONSTRAINTS) -e ".[docs]"
	@$(BIN)/python tools/site.py

# A CUDA machine brings its own torch: make demo PIP_CONSTRAINTS=
PIP_CONSTRAINTS ?= -c constraints.txt

$(READY): setup.py constraints.txt
	@echo "making the environment $(VENV) (once, about two minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_CONSTRAINTS) -e ".[test]"
	@touch $(READY)

clean:
	rm -rf runs/demo data/demo data/demo.* build/pages build/site
