# `make demo` and `make test` set everything up by themselves, in .venv.
# To use an environment that has kdtune[dev] already: make test ENV=/path/to/env

PYTHON ?= $(shell command -v python3.11 || command -v python3)

ifdef ENV
BIN := $(ENV)/bin
else
BIN := .venv/bin
READY := .venv/.ready
endif

# Tests that start neither Ray nor a training of more than seconds.
QUICK_TESTS := $(addprefix tests/,config log runtime storage methods)

.PHONY: demo test slow quick quick-tests check lint types clean bench-trial bench-search bench-faults bench-checkpoints bench-overhead bench-verdict bench-plan bench-cluster bench-strengths bench-gpu bench-views reference reference-report bench-threads bench-augmentations test-lowest

demo: $(READY)
	$(BIN)/kdtune demo

# Tests of a file share their sweeps, so one process runs a file. Much of their time is a wait for processes to
# start; with more than two at once, limits of time would pass before anything has started.
SLOW_TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses auto --maxprocesses 2 --dist loadfile

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' --numprocesses auto --maxprocesses 4 --cov=kdtune
	$(SLOW_TESTS)

# With the lowest versions that pyproject.toml allows. Ray 2.50 warns of its own code, and leaves files open.
test-lowest: .venv-lowest/.ready
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -m 'not slow' --numprocesses auto --maxprocesses 4 \
		-W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning \
		-W ignore::FutureWarning \
		-W 'ignore:This API is deprecated and may be removed in future Ray:DeprecationWarning'
	rm -rf results/lowest
	.venv-lowest/bin/kdtune teacher --data digits --image-size 8 --epochs 1 --out .venv-lowest/teacher.pth
	.venv-lowest/bin/kdtune sweep --data digits --teacher .venv-lowest/teacher.pth --models ResNet18 \
		--trials 2 --epochs 2 --name lowest
	.venv-lowest/bin/kdtune leaderboard results/lowest

# WING=tuning/cluster: the slow tests of one package, instead of all.
slow: $(READY)
	$(SLOW_TESTS) tests/$(WING)

check: lint types

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

# What a change most often breaks, in less than a minute on two cores.
quick: $(READY)
	$(MAKE) --jobs 2 --output-sync=target check quick-tests

quick-tests: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' --quiet $(QUICK_TESTS)

# DATA=/path: an ImageFolder, such as CIFAR-10 as JPEG; without it, JPEGs are made of the digits.
bench-trial: $(READY)
	$(BIN)/python benchmarks/trial.py $(if $(DATA),--data $(DATA))

# CURVES=/path: another file of curves, or foreign runs (.jsonl.gz), besides those of this repository.
bench-search: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/search.py $(CURVES)

# CURVES=/path: a file of foreign runs (.jsonl.gz), as for bench-search.
bench-verdict: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdict.py $(CURVES)

bench-faults: $(READY)
	$(BIN)/python benchmarks/faults.py

bench-checkpoints: $(READY)
	$(BIN)/python benchmarks/checkpoints.py

bench-overhead: $(READY)
	$(BIN)/python benchmarks/overhead.py

bench-augmentations: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/augmentations.py

bench-views: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/views.py

bench-threads: $(READY)
	$(BIN)/python benchmarks/threads.py

# DATA=/path: as for bench-trial.
bench-plan: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/plan.py $(if $(DATA),--data $(DATA))
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scale.py

# DATA=/path: an ImageFolder. TEACHERS="a.pth b.pth": teachers of its classes.
bench-strengths: $(READY)
	$(BIN)/python benchmarks/strengths.py --data $(DATA) $(TEACHERS)

# Needs a GPU. DEVICE=cpu shows that it runs.
bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(if $(DEVICE),--device $(DEVICE) --images 128)

# OUT=/path: where the picture goes.
bench-cluster: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cluster.py $(if $(OUT),--out $(OUT))

# The studies in results/reference once more, beside them; README there says how long they take.
# CIFAR=DIR: a folder of CIFAR-10's images (train/, test/), instead of the published set, which is downloaded.
CIFAR := cifar10
FASHION_TEACHER := results/reference-teacher-fashion-mnist.pth
CIFAR_TEACHER := results/reference-teacher-cifar10.pth
TEACH = $(BIN)/kdtune teacher --train-images 10000 --validation-images 1000 --image-size 64 --model ResNet18 \
	--epochs 6 --setting batch_size=64 --setting step_size=4
REPEAT = $(BIN)/kdtune sweep results/reference/$(1)/sweep.yaml --name reference-$(1)

reference: $(READY)
	$(TEACH) --data fashion-mnist --out $(FASHION_TEACHER)
	$(call REPEAT,fashion-mnist) --teacher $(FASHION_TEACHER)
	$(call REPEAT,fashion-mnist-strong) --teacher $(FASHION_TEACHER)
	$(TEACH) --data $(CIFAR) --out $(CIFAR_TEACHER)
	$(call REPEAT,cifar10) --data $(CIFAR) --teacher $(CIFAR_TEACHER)
	$(MAKE) reference-report

# The tables of the studies, and one page, of their logs; also of repetitions that are there.
STUDIES = $(wildcard results/reference/*/ results/reference-*/)

reference-report: $(READY)
	$(BIN)/kdtune leaderboard $(STUDIES) --format markdown
	$(BIN)/kdtune report $(STUDIES) --out results/reference/report.html

clean:
	rm -rf .venv .venv-lowest .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch and torchvision first and together, so that pip settles on one pair of them.
.venv/.ready: pyproject.toml .constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint .constraints.txt torch torchvision
	.venv/bin/python -m pip install --quiet --constraint .constraints.txt --editable '.[dev]'
	touch $@

# The names and lower bounds of dependencies and optional packages, with == for >=. Later versions of
# pyparsing warn of how matplotlib 3.9 uses them, and warnings are errors in tests.
.venv-lowest/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	sed -n '/^dependencies/,/^test/s/.*"\([^">]*\)>=\([^"]*\)".*/\1==\2/p' pyproject.toml > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --requirement .venv-lowest/lowest.txt 'pyparsing<3.3' --editable '.[test]'
	touch $@
