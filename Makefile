# make train: a segmenter trains and is scored, from nothing; make train-cls: a classifier; make test: the tests.
# Each makes .venv when needed.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Small enough for two cores; ARGS is added last and overrides, e.g. make train ARGS="-i 1 --epochs 30 --seed 1"
QUICK := --experiment seg-4 -p 0 --size 128 128 --lr 1e-3
QUICK_CLS := -n arl18 -p 0 --lr 1e-3
ARGS ?=

.PHONY: train train-cls results test lint lock

train: $(VENV)/.train
	@if [ -d Data/ISIC2017 ]; then \
		echo "Data/ISIC2017 is there: training on the challenge's photographs"; \
		$(PY) seg_main.py $(QUICK) --epochs 8 --output model/quick $(ARGS); \
	else \
		echo "no Data/ISIC2017: training on the embedded sample (drawn, not photographed)"; \
		$(PY) -m utils.data.synthetic --out Data/sample && \
		$(PY) seg_main.py $(QUICK) --epochs 20 --data Data/sample --output model/sample $(ARGS); \
	fi

train-cls: $(VENV)/.train
	@if [ -d Data/ISIC2017 ]; then \
		echo "Data/ISIC2017 is there: training on the challenge's photographs"; \
		$(PY) cls_main.py $(QUICK_CLS) --size 112 112 --epochs 25 --output model/quick $(ARGS); \
	else \
		echo "no Data/ISIC2017: training on the embedded sample (drawn, not photographed)"; \
		$(PY) -m utils.data.synthetic --out Data/sample_cls --train 1200 --validation 200 --test 200 --size 192 144 && \
		$(PY) cls_main.py $(QUICK_CLS) --size 64 64 --epochs 25 --data Data/sample_cls --output model/sample $(ARGS); \
	fi

# Every row for three seeds: days on a GPU. make results ARGS="seg-b1 cls-b1 cls-b2 --jobs 2"
results: $(VENV)/.train
	$(PY) reproduce.py $(ARGS)

# A file at a time on each of up to four processes, whose threads would only wait for each other. In the files' order:
# else those of few tests, which are long ones, come last, and one process waits for the other.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# One file for every platform and Python from 3.10 on. Pins stay as they are unless told otherwise: make lock ARGS=-U
lock: $(VENV)/.test
	$(PY) -m pip install -q uv
	$(PY) -m uv pip compile --universal --python-version 3.10 --no-annotate --no-header $(ARGS) \
		-o requirements.lock requirements-dev.txt

$(VENV)/.train: requirements.txt requirements.lock | $(VENV)
	@echo "installing the pinned packages, PyTorch among them: minutes"
	$(PY) -m pip install -q -r requirements.txt -c requirements.lock
	@touch $@

$(VENV)/.test: requirements-dev.txt requirements.txt requirements.lock | $(VENV)
	@echo "installing the pinned packages, PyTorch among them: minutes"
	$(PY) -m pip install -q -r requirements-dev.txt -c requirements.lock
	@touch $@ $(VENV)/.train

$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version + "; make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python's venv module is needed, on Debian: apt install python3-venv"; exit 1; }
