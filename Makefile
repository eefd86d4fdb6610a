# Everything is installed into .venv, which is created here. PYTHON selects another interpreter (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo study models test test-slow test-gpu gpu bench test-matrix test-floor faults peers mutants lint audit check fix clean
.PHONY: docs release-check

demo: .venv/core
	$(BIN)/swag-models list
	$(BIN)/swag-models verify regnety_200mf_hashtags
	@echo "Ten emoji by an artist that this small model has not seen (of 73% of these the first class is a keyword):"
	$(BIN)/swag-models classify swag_models/app/examples --model regnety_200mf_hashtags --top-k 4
	@echo "Zero-shot, among eleven of its 1,751 hashtags:"
	$(BIN)/swag-models classify swag_models/app/examples --model regnety_200mf_hashtags --top-k 1 \
	  --candidate-labels butterfly,cloud,dress,fish,horse,house,laptop,lemon,pear,spider,watch
	$(BIN)/python examples/finetune.py

# About 20 minutes; rerun it to resume. New weights need their metrics and hashes in the catalog.
study: .venv/dev
	mkdir -p build
	$(BIN)/python -m studies run build/study
	cp build/study/report/study.md build/study/report/study.png docs/
	for name in regnety_nano_hashtags vit_nano_hashtags; do \
	  cp build/study/report/$$name/model.safetensors swag_models/weights/$$name.safetensors; done

# About four hours; rerun it to resume. New weights need their measures and hash in the catalog.
models: .venv/dev
	mkdir -p build
	$(BIN)/python -m studies.drawings build/drawings --min-images 6
	$(BIN)/python -m studies models build/models build/drawings
	cp build/models/models/regnety_200mf_hashtags/model.safetensors swag_models/weights/regnety_200mf_hashtags.safetensors

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: .venv/serve
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU: its own tests, and those that use a GPU where there is one.
test-gpu: .venv/dev
	$(BIN)/python -m pytest tests/gpu tests/recipe/training tests/inference

# Every benchmark beside its peers, in one table: benchmarks/RESULTS.md. Rerun it to resume; about 2 hours.
# BENCH="--quick" tries all of them with small inputs, BENCH="--only vit_b16 --rounds 11" measures a part.
bench: .venv/bench
	$(BIN)/python -m benchmarks.run $(BENCH)

# On a machine with a GPU, in at most 8 minutes: inference, training, decoding and tests/gpu, added to the same
# table. It installs nothing: PYTHON is an interpreter with torch 2.11 or newer.
gpu:
	$(PYTHON) -m benchmarks.gpu $(GPU)

# Numerical tests under each instruction set of this CPU, with 1 and 2 threads; tests of signals and environments.
test-matrix: .venv/dev
	$(BIN)/python tests/matrix.py

# The core's tests with the lowest supported versions of the dependencies; documents and examples need extras.
FLOOR_TESTS := $(filter-out tests/test_docs.py tests/test_examples%.py, $(wildcard tests/test_*.py))
test-floor:
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-floor/bin/python -m pip install --quiet --constraint tests/floor.txt --editable . --group floor
	OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile \
	  $(FLOOR_TESTS) tests/models tests/hub tests/inference tests/publish

# Hostile inputs, hours; FAULTS_SCALE=0.02 runs 2% of the cases. Writes docs/reliability.md also if a test fails.
faults: .venv/dev
	status=0; OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults tests/faults || status=$$?; \
	  $(BIN)/python tests/faults/write_report.py && exit $$status

# Scenarios of the tests of timm, torchvision, transformers and others, on our models and on theirs.
peers: .venv/dev
	$(BIN)/python tests/peers/write_compatibility.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" tests/peers

# Do the tests notice changed code? A sample of 20 mutants per module takes about an hour.
# MUTANTS="--all models/vit.py" tests every mutant of a module. Writes tests/mutants/README.md.
mutants: .venv/dev
	$(BIN)/python -m pip install --quiet --group mutants
	nice $(BIN)/python tests/mutants/run.py $(MUTANTS)

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml swag_models studies

# Known vulnerabilities of the installed dependencies. Needs the network: advisories are looked up at the package
# index. A package without an entry there is an error, so that an index without advisories is not taken for a clean result.
audit: .venv/dev
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet "pip-audit==2.*"
	mkdir -p build && $(BIN)/python -m pip freeze --exclude-editable > build/audited.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement build/audited.txt

check: lint test

fix: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site in build/site; a warning, for example a broken link, is an error. Needs no PyTorch.
docs:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-docs/bin/python -m pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

# Build the distributions and use the wheel alone in fresh environments of each Python that is installed; minutes, and
# up to 6 GB of disk at a time. RELEASE="--python 3.12 --torch-index URL" selects versions, or an index of torch without CUDA.
release-check:
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-release/bin/python -m pip install --quiet --group release
	.venv-release/bin/python tests/release/check.py $(RELEASE)

clean:
	rm -rf .venv .venv-audit .venv-docs .venv-floor .venv-release

.venv/core: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/dev: .venv/core
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

.venv/bench: .venv/dev
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

.venv/serve: .venv/dev
	$(BIN)/python -m pip install --quiet --group serve
	touch $@
