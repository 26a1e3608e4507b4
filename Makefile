# make demo   the whole path on a small real model, in minutes on a laptop: skill, refusals, over-refusal
# make test   lint, types and tests
# make quick  lint, types and the tests that take under a second each
# make fuzz   10,000 edited files and run folders in place of the 500 of `make test`: some minutes
# make lowest parity and training tests with the lowest versions that setup.cfg allows (Python 3.10 to 3.12);
#             TORCH=2.13.0 for another torch than the lowest
# make reproduce MODEL=...   every recipe, then the original's figures beside ours; LIMIT=N for fewer test questions,
#             TRAIN_LIMIT=N for fewer to train on, JUDGE=refusal where there is no guard, EMBEDDER=... for similar shots,
#             UNTUNED=... for Safe LoRA, SEEDS=N for N trainings of each, SET="train.lr=1e-3 ..." for options that overrule the recipes
# make gpu    what only a GPU can show, in a few minutes: gpu.log is the evidence (docs/GPU.md)
# All set up .venv first, if it is not there yet.

PYTHON3 ?= python3
PYTHON := .venv/bin/python
GUARD ?= Qwen/Qwen3Guard-Gen-0.6B
BASE := runs/demo/base
TUNED := runs/demo/tuned
DEMO := --model smollm2 --data demo
ANSWER := $(DEMO) --task gsm8k,ailuminate,xstest --max-new-tokens 128 --batch-size 64

MODEL ?= meta-llama/Llama-3.2-1B-Instruct
JUDGE ?= guard

.PHONY: demo reproduce lint test quick fuzz lowest gpu clean

demo: .venv/installed
	$(PYTHON) generate.py $(ANSWER) --run $(BASE) --no-adapter
	$(PYTHON) train.py $(DEMO) --run $(TUNED) --lr 2e-3 --batch-size 4 --limit 260 --validation 10
	$(PYTHON) generate.py $(ANSWER) --run $(TUNED)
	@if $(PYTHON) judge.py --run $(BASE) --guard $(GUARD); then \
		$(PYTHON) judge.py --run $(TUNED) --guard $(GUARD); \
	else \
		echo "No guard to be had (see the line above): counting refusal phrases instead."; \
		for run in $(BASE) $(TUNED); do \
			$(PYTHON) judge.py --run $$run --guard refusal-phrases || exit; \
		done; \
	fi
	$(PYTHON) report.py $(BASE) $(TUNED) --output runs/demo/report

reproduce: .venv/installed
	$(PYTHON) experiment.py recipes/*.yaml --model $(MODEL) --judge $(JUDGE) \
		$(if $(LIMIT),--limit $(LIMIT)) $(if $(TRAIN_LIMIT),--train-limit $(TRAIN_LIMIT)) \
		$(if $(EMBEDDER),--embedder $(EMBEDDER)) $(if $(UNTUNED),--untuned $(UNTUNED)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(foreach setting,$(SET),--set $(setting))

lint: .venv/installed
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

# A worker a core for the small tests, one process for those that measure memory or use all cores.
test: quick
	$(PYTHON) -m pytest -m slow

quick: lint
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m 'not slow' -n auto

fuzz: .venv/installed
	UNFORGET_FUZZ_CASES=10000 $(PYTHON) -m pytest tests/fuzz

gpu: .venv/installed
	$(PYTHON) -m benchmarks.gpu

lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest tests/llama tests/lora tests/common/test_likelihood.py tests/test_train.py

.venv-lowest/installed: setup.cfg
	$(PYTHON3) -m venv .venv-lowest
	sed -n 's/^ *\([A-Za-z0-9-]*\)>=\([0-9.]*\)$$/\1==\2/p' setup.cfg > .venv-lowest/versions.txt
	$(if $(TORCH),sed -i 's/^torch==.*/torch==$(TORCH)/' .venv-lowest/versions.txt)
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/versions.txt --editable '.[demo,plots,test]'
	touch $@

.venv/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON3=..."'
	$(PYTHON3) -m venv .venv
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[demo,plots,test]'
	touch $@

clean:
	rm -rf .venv .venv-lowest build *.egg-info .pytest_cache .ruff_cache .mypy_cache
