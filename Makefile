# make demo   install and generate 1,024 frames, a story of four games, with the bundled model
# make test   install and run the tests
# make compare-tiny   every system trained for seconds on the same footage and compared: runs/compare-tiny
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test compare-tiny test-slow lint types docs clean

demo: $(VENV)/.base
	$(BIN)/longtake generate tats-atari -o demo.mp4 --story examples/story.yaml --sheet demo.png
	@echo "The video is $(CURDIR)/demo.mp4, its contact sheet $(CURDIR)/demo.png."

test: $(VENV)/.dev
	$(BIN)/python -m pytest

compare-tiny: $(VENV)/.dev data/compare-tiny/library.json
	mkdir -p runs/compare-tiny
	$(BIN)/python experiments/comparison.py --data data/compare-tiny --output runs/compare-tiny \
	  --pflop 0.0001 --videos 16 --frames 128 --long 512
	@echo "The page is $(CURDIR)/runs/compare-tiny/comparison.html."

data/compare-tiny/library.json: | $(VENV)/.dev
	$(BIN)/longtake data sample atari -o data/compare-tiny --minutes 12 --size 32 --seed 1 --test 0.4 \
	  --games enduro freeway riverraid seaquest

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow --timeout=1800

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist site demo.mp4 demo.png
