PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check --quiet --no-compile
GPU_PACKAGES := build/gpu-packages
OLD_ONNXRUNTIME := build/onnxruntime-oldest
OLDEST := build/oldest
FOR_GPU = $(BIN)/pip install --disable-pip-version-check --quiet --target $(GPU_PACKAGES) --no-compile --only-binary=:all: \
	--python-version 3.12 $(addprefix --platform manylinux,_2_28_x86_64 _2_17_x86_64 2014_x86_64)
RAW := data/raw/openmoji/metadata/posts000000000000.json
DATA := data/openmoji
RUN := runs/openmoji

# pip would take a minute to compile all modules. Python compiles those that are imported, and keeps the result.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help

.PHONY: help install quickstart claims test test-portable test-pages test-benchmarks test-faults test-oldest check-finetune check-labelling check-evidence check-data check-gpu gpu-wheels check-export check-statistics format docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: .venv/installed  ## install the project into .venv

quickstart: $(RUN)/release/metrics.json  ## build the embedded dataset, train, evaluate, draw a contact sheet
	$(BIN)/joytag show --run $(RUN) --data $(DATA)

claims: .venv/installed-dev | $(DATA)/dataset.json  ## test the published claims and write docs/claims.md: two hours; resumes
	$(BIN)/joytag build --config configs/data/openmoji_alone.yaml
	for config in configs/sweeps/claims/*.yaml; do $(BIN)/joytag sweep --config $$config --jobs 2 || exit; done
	$(BIN)/python -m joytag.sweeps.claims_page

test: .venv/installed-dev  ## check style and types, run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers auto
	$(BIN)/pytest -n logical

test-portable: .venv/installed-dev  ## run what must pass on Windows and macOS, without what only Unix has: five minutes
	PYTHONPATH=tests/helpers/without_unix PYTHONIOENCODING=cp1252 $(BIN)/pytest -n logical -m portable

check-finetune: .venv/installed-dev | $(RUN)/release/model.safetensors  ## fine-tune the quickstart's model on new tags, and measure
	$(BIN)/pytest -m slow -s tests/training/test_transfer_case.py

check-labelling: .venv/installed-dev | $(RUN)/release/metrics.json  ## simulate people who label the quickstart's images, and measure what their decisions teach
	$(BIN)/pytest -m slow -s tests/app/test_queues.py tests/app/test_labelling_pays.py

check-evidence: .venv/installed-dev | runs/openmoji_restart/release/model.safetensors  ## find planted drawings by the evidence maps of a model that saw 96 px
	$(BIN)/pytest -m slow -s tests/tagging/test_evidence.py

check-data: .venv/installed-dev  ## build a synthetic mirror of 20,000 posts in every way, and check it against its answer key
	$(PIP_INSTALL) --editable '.[cluster]'
	$(BIN)/pytest -m slow tests/data_prep tests/cli/test_sweep.py

check-export: .venv/installed-dev | $(RUN)/release/metrics.json  ## export the quickstart's model and many backbones, run them on old and new onnxruntime and, with npm, in a browser
	$(BIN)/pip install --disable-pip-version-check --quiet --no-warn-conflicts --only-binary=:all: --upgrade \
		--target $(OLD_ONNXRUNTIME) onnxruntime==1.15.0 'numpy<2'
	npm install --silent --no-audit --no-fund --prefix build/onnxruntime-web onnxruntime-web@1
	$(BIN)/pytest -m slow -s tests/export

check-statistics: .venv/installed-dev  ## simulate sweeps and comparisons, and count what their statistics claim and find
	$(BIN)/pytest -n logical -m statistics

test-pages: .venv/installed-dev  ## open the app's page and the reports in Chromium: minutes
	CI=true $(BIN)/pytest -n logical -m "pages and not slow and not faults"

test-benchmarks: .venv/installed-dev  ## run the benchmarks in miniature: a minute
	CI=true $(BIN)/pytest -n logical -m benchmarks

test-faults: .venv/installed-dev  ## kill, stop and poison builds, sweeps and runs of one to four processes, fill disks: a quarter of an hour
	$(BIN)/pytest -n logical -m "faults and not slow"

test-oldest: | .venv/bin/python  ## run the tests with the oldest packages that pyproject.toml admits: a quarter of an hour
	$(PIP_INSTALL) uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --system-certs --python $(OLDEST) --resolution lowest-direct --editable '.[train,demo,dev]'
	$(OLDEST)/bin/pytest -n logical

check-gpu:  ## test and measure on a GPU, in at most nine minutes, into gpu.json; needs no network and no .venv
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,PYTHONPATH=$(GPU_PACKAGES) $(PYTHON)) -m joytag.benchmarks.gpu

gpu-wheels: | .venv/bin/python  ## install what check-gpu needs on a machine without network into build/gpu-packages
	rm -rf $(GPU_PACKAGES)
	$(FOR_GPU) pydantic pytest rich
	$(FOR_GPU) --no-deps filelock pytorch-ranger pyyaml simplejpeg torch-optimizer
	du -sh $(GPU_PACKAGES)

format: .venv/installed-dev  ## rewrite the code in the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/installed  ## write the reference of all settings, for readers and for editors
	$(BIN)/joytag train --settings > docs/configuration.md
	echo >> docs/configuration.md
	$(BIN)/joytag build --settings >> docs/configuration.md
	echo >> docs/configuration.md
	$(BIN)/joytag sweep --settings >> docs/configuration.md
	$(BIN)/joytag train --settings json > configs/schema.json
	$(BIN)/joytag build --settings json > configs/data/schema.json
	$(BIN)/joytag sweep --settings json > configs/sweeps/schema.json

clean:  ## remove the environment, the embedded dataset and its run
	rm -rf .venv data/raw/openmoji data/raw/twemoji $(DATA) $(RUN)

# Each rule below runs only if its output is missing.

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(PIP_INSTALL) --editable '.[train,demo]'
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(PIP_INSTALL) --editable '.[train,demo,dev]'
	touch .venv/installed $@

$(RAW): data_prep/tools/openmoji.py data_prep/tools/emoji_variants.py | .venv/installed
	$(BIN)/joytag openmoji

# These are always called: they skip what is done, and refuse what is left of another config or other data.
.PHONY: $(DATA)/dataset.json $(RUN)/release/model.safetensors runs/openmoji_restart/release/model.safetensors

$(DATA)/dataset.json: $(RAW)
	$(BIN)/joytag build --config configs/data/openmoji.yaml

$(RUN)/release/model.safetensors: | $(DATA)/dataset.json
	$(BIN)/joytag train --config openmoji.yaml --resume auto

runs/openmoji_restart/release/model.safetensors: | $(DATA)/dataset.json
	$(BIN)/joytag train --config openmoji_restart.yaml --resume auto

$(RUN)/release/metrics.json: | $(RUN)/release/model.safetensors
	$(BIN)/joytag evaluate --model $(RUN)/release --data $(DATA) --groups configs/groups/openmoji.yaml
