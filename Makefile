# Two commands for newcomers: `make run` and `make test`. Both make .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test files that run at a time. JOBS=0 runs them one after another in one process.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
# What has to hold on every backend; the first run of the tests is on TensorFlow's.
BACKEND_TESTS := tests/test_layers.py tests/test_models.py tests/test_weights.py::test_golden
INSTALLED := $(VENV)/.installed

.PHONY: run test test-all web lint format constraints clean

run: $(INSTALLED)
	$(BIN)/vit-keras run $(ARGS)

test: $(INSTALLED)
	$(PYTEST) -m "not slow" $(ARGS)
	KERAS_BACKEND=jax $(PYTEST) -m "not slow" $(BACKEND_TESTS)

test-all: $(INSTALLED)
	$(PYTEST) $(ARGS)
	KERAS_BACKEND=jax $(PYTEST) $(BACKEND_TESTS)

# LiteRT.js, for `vit-keras web`: fetched with npm, held against its checksum, and in wheels built afterwards.
web: $(INSTALLED)
	$(BIN)/python -m vit_keras.export.vendoring

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What the suite passed with: names and versions, nothing else.
constraints: $(INSTALLED)
	$(BIN)/python -m pip list --format=freeze --exclude vit-keras-edge --exclude pip > constraints.txt

$(INSTALLED): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs
