# Every target is explained by `make help`. Needs Python 3.11 or later with pip, and make.

PYTHON ?= python3
# Options of pip for PyTorch, installed first: make setup TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.stamp
STORE := stores/digits
PICTURES := out/digits

.DEFAULT_GOAL := help
.PHONY: help setup test demo reproduce bench lint format clean python

help: ## Show this text
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install the project into it (TORCH_ARGS="..." for PyTorch's own options of pip)

test: $(STAMP) ## Run the tests
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

demo: $(STAMP) ## Fit a store of handwritten digits, one compartment per digit, and sample from all of them
	@# Images of 8x8 pixels are too small for several threads to help.
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m cdm_lightning fit --config digits_shards.yaml
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m cdm_lightning sample --store $(STORE) --sources all --n 64 --out $(PICTURES)
	@echo
	@echo "Pictures:     $(PICTURES)/grid.png, with credits in $(PICTURES)/credits.json"
	@echo "TensorBoard:  $(BIN)/tensorboard --logdir $(STORE)/runs --samples_per_plugin images=100"
	@echo "Store:        $(STORE)"

reproduce: $(STAMP) ## Train and compare all that the README's quality table shows (INPUT="folder of FashionMNIST" INCEPTION="file" save downloads)
	$(BIN)/python -m benchmarks.quality $(if $(INPUT),--input $(INPUT)) $(if $(INCEPTION),--inception $(INCEPTION))

bench: $(STAMP) ## Time composing against one model, side by side
	$(BIN)/python -m benchmarks.speed

lint: $(STAMP) ## Check style and types
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary

format: $(STAMP) ## Format the code and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Delete caches and build products; .venv, data, stores and out stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +

python:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "'$(PYTHON)' is not found: install Python 3.11 or later, or name it: make setup PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "'$(PYTHON)' is older than Python 3.11: install a later one, or name it: make setup PYTHON=python3.11"; exit 2; }

$(STAMP): pyproject.toml | python
	$(PYTHON) -m venv .venv
	$(if $(TORCH_ARGS),$(BIN)/pip install $(TORCH_ARGS) torch torchvision)
	$(BIN)/pip install -e '.[dev]'
	@touch $@
