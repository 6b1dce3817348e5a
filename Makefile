# make demo: install, run the whole way once on the shipped sample.  make test: install, run the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/installed

.PHONY: demo test lint validate-infra clean

demo: $(READY)
	$(BIN)/python -m pipelines.demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2
	$(BIN)/python -m pytest -m "slow and not long" -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Kubernetes manifests and the Dockerfile; needs kubectl, and says where to get it
validate-infra: $(READY)
	$(BIN)/python -m infra.validate

$(READY): requirements.lock torch.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r torch.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) runs build dist *.egg-info
