# make alone lists what there is. What needs packages makes .venv with them first (6.5 GB, see README).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Small enough for two cores without bfloat16; ARGS is added last and overrides, e.g. make train ARGS="-i 1 --epochs 30"
QUICK := --experiment seg-4 -p 0 --lr 1e-3
QUICK_CLS := -n arl18 -p 0 --lr 1e-3
ARGS ?=

.PHONY: help train train-cls results notebooks test lint lock

help:  # from the lines below
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

train: $(VENV)/.train  ## train a lesion segmenter and score it; without Data/ISIC2017 on synthetic data: minutes
	@if [ -d Data/ISIC2017 ]; then \
		echo "Data/ISIC2017 is there: training on the challenge's photographs"; \
		$(PY) seg_main.py $(QUICK) --size 128 128 --epochs 8 --output model/quick $(ARGS); \
	else \
		echo "no Data/ISIC2017: training on synthetic data (drawn, not photographed)"; \
		$(PY) -m utils.data.synthetic --out Data/synthetic && \
		$(PY) seg_main.py $(QUICK) --size 96 96 --epochs 12 --data Data/synthetic --output model/synthetic $(ARGS); \
	fi

train-cls: $(VENV)/.train  ## train a classifier and score it, likewise
	@if [ -d Data/ISIC2017 ]; then \
		echo "Data/ISIC2017 is there: training on the challenge's photographs"; \
		$(PY) cls_main.py $(QUICK_CLS) --size 112 112 --epochs 25 --output model/quick $(ARGS); \
	else \
		echo "no Data/ISIC2017: training on synthetic data (drawn, not photographed)"; \
		$(PY) -m utils.data.synthetic --out Data/synthetic_cls --train 1200 --validation 200 --test 200 --size 192 144 && \
		$(PY) cls_main.py $(QUICK_CLS) --size 64 64 --epochs 15 --data Data/synthetic_cls --output model/synthetic $(ARGS); \
	fi

results: $(VENV)/.train  ## every row for three seeds: days on a GPU; make results ARGS="seg-b1 cls-b1 --jobs 2"
	$(PY) reproduce.py $(ARGS)

# Of synthetic data and of results/: no photograph gets into git this way. Paths of this machine are cut off.
notebooks: $(VENV)/.test  ## execute the notebooks, with outputs, into docs/notebooks/*.html: minutes
	@mkdir -p docs/notebooks
	@for name in Segmentation ARL-CNN Evaluation-Seg Evaluation-Cls; do \
		$(PY) -m papermill $$name.ipynb docs/notebooks/$$name.ipynb -r data "" -r runs results --no-progress-bar && \
		$(PY) -m nbconvert --to html --stdout docs/notebooks/$$name.ipynb | \
		sed "s|$(CURDIR)/||g; s|$(abspath $(PY))|python|g" > docs/notebooks/$$name.html && \
		rm docs/notebooks/$$name.ipynb || exit 1; \
	done

# A file at a time on each of up to four processes, whose threads would only wait for each other. In the files' order:
# else those of few tests, which are long ones, come last, and one process waits for the other.
test: $(VENV)/.test  ## the tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.test  ## style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# One file for every platform and Python from 3.10 on. Pins stay as they are unless told otherwise: make lock ARGS=-U
lock: | $(VENV)  ## pin the packages
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
