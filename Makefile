# Everything runs in .venv, made on first use. A stamp in it says which packages it has; a newer pyproject.toml
# brings them up to date, and nothing is installed twice.

PYTHON ?= python3
PROMPT ?= a cat left of an apple on a blue background
PICTURE ?= picture.png
export PROMPT PICTURE

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet

.DEFAULT_GOAL := help
.PHONY: help picture test fuzz chapters mutants lint docs docs-serve train speedrun evaluate bench laptop clean

help:  ## list these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

picture: $(VENV)/minflux.stamp  ## generate picture.png; for another, PROMPT="a bee above a hat on a pink background"
	@$(BIN)/minflux generate "$$PROMPT" --out "$$PICTURE"

test: $(VENV)/test.stamp  ## run the tests: every part against PyTorch, on NumPy and on MLX; K=rope or K=model runs a part
	@if [ -z "$(K)" ]; then set -- -n 2; elif [ -d "tests/$(K)" ]; then set -- "tests/$(K)"; else set -- -k "$(K)"; fi; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest "$$@"

fuzz: $(VENV)/test.stamp  ## give minflux 2000 damaged inputs of each kind; COUNT=500 SEED=1 for others
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --count $(or $(COUNT),2000) --seed $(or $(SEED),0)

chapters: $(VENV)/chapters.stamp  ## run the course's notebooks and their solutions, and compare with what is committed
	OMP_NUM_THREADS=1 $(BIN)/python -m chapters.check -n 2

mutants: $(VENV)/test.stamp  ## put a 1% error into every op and component, and see that the tests notice
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

lint: $(VENV)/lint.stamp  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs.stamp  ## build the site of docs, course and API into site/, and refuse any warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "the site is $(CURDIR)/site/index.html"

docs-serve: $(VENV)/docs.stamp  ## show the site at http://127.0.0.1:8000, built anew as its pages change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

train: $(VENV)/train.stamp  ## train the small model anew into runs/tiny (hours on two cores); stop and go on as you like
	$(BIN)/minflux train vae --recipe tiny --folder runs/tiny
	$(BIN)/minflux train text --recipe tiny --folder runs/tiny
	$(BIN)/minflux train flow --recipe tiny --folder runs/tiny

speedrun: $(VENV)/train.stamp  ## train the small model from nothing, and report hours by stage and what is then right
	$(BIN)/python -m benchmarks.speedrun

evaluate: $(VENV)/minflux.stamp  ## measure the shipped model on 200 prompts of each kind that it was not trained on
	$(BIN)/minflux evaluate --prompts 200

bench: $(VENV)/test.stamp  ## measure minflux beside PyTorch, and write docs/benchmarks.md (20 minutes on two cores)
	@$(BIN)/python -m benchmarks.bench

laptop: $(VENV)/test.stamp  ## draw with a FLUX.1 of full size and random weights (34 GB in runs/laptop), and measure it
	@$(BIN)/python -m benchmarks.laptop

clean:  ## remove .venv and all caches; runs/ and pictures stay
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find minflux tests benchmarks tools chapters examples -name __pycache__ -type d -prune -exec rm -rf {} +

# -- the environment -------------------------------------------------------------------------------------------

$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/minflux.stamp: pyproject.toml | $(BIN)/pip
	@echo "installing minflux into $(VENV), for a minute or so"
	@$(PIP) --editable '.[mlx]' || { echo "MLX can't be installed here: NumPy alone, then"; $(PIP) --editable .; }
	@touch $@

$(VENV)/%.stamp: pyproject.toml | $(BIN)/pip
	@echo "installing what 'make $*' needs into $(VENV), for some minutes"
	@$(PIP) --editable '.[$*]'
	@touch $@
