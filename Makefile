# Everything runs in .venv, which these targets make themselves from python3 and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check docs images format bench evaluate clean

demo: $(STAMP)  ## "a bear and a clock and a dog", plain and guided, from the embedded model -> out/demo.png
	$(BIN)/python examples/demo.py out/demo.png

test: $(STAMP)  ## two processes of one thread each, whole test files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP)  ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(STAMP)  ## the site, with every warning an error -> out/site/index.html; its images show what they should
	$(BIN)/python -m examples.images --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

images: $(STAMP)  ## the images of README and the site that commands make -> docs/images
	$(BIN)/python -m examples.images

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)  ## the tables of docs/results.md and docs/performance.md
	$(BIN)/python -m bench.guidance
	$(BIN)/python -m bench.pocket --out out/pocket
	$(BIN)/python -m bench.attend_excite
	$(BIN)/python -m bench.step --size pocket
	$(BIN)/python -m bench.count
	$(BIN)/python -m bench.audition
	$(BIN)/python -m bench.fast --out out/fast
	$(BIN)/python -m bench.heads cost
	$(BIN)/python -m bench.heads prompts
	$(BIN)/python -m bench.heads routes
	$(BIN)/python -m bench.heads weakening --out out/weakening
	$(BIN)/python -m bench.heads edits --out out/edits
	$(BIN)/python -m bench.heads senses --seeds 12
	$(BIN)/python -m bench.recording
	$(BIN)/python -m bench.edit --out out/edit --steps 20
	$(BIN)/python -m bench.edit --inversion
	$(BIN)/python -m bench.learn --out out/learn
	$(BIN)/python -m bench.segmentation --out out/segmentation.jsonl

evaluate: $(STAMP)  ## the 276 prompts of Attend-and-Excite, 4 seeds, plain and guided -> out/attend-excite/report.html
	$(BIN)/limelight evaluate run --suite attend-excite --seeds 0-3 --out out/attend-excite
	$(BIN)/limelight evaluate score out/attend-excite
	$(BIN)/limelight evaluate report out/attend-excite

clean:
	rm -rf $(VENV) out

# torch first and alone: a CUDA user who has put another torch into .venv keeps it (see README).
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
