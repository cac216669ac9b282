# make demo                 train on the built-in sample, fuse, prove, serve on 127.0.0.1:7860
# make demo DATA=folder     the same on your own pictures      (SERVE=0 stops after the proof)
# make silkworm DATA=folder cross-validate, then train on all pictures: a bundle with its card in runs/silkworm
# make public DEST=folder   fetch the public silkworm pictures listed in data_prep/silkworms.csv, as a set with folds
# make test                 every notebook and test that CI runs
# make test-other-cpu       those that train, as a processor without AVX-512 computes them
# make test-oldest          the tests with the oldest packages that settings.ini allows, in .venv_oldest
# make notebooks            runs them all and keeps what they show
# make docs                 the documentation as a site in _site
# make pictures             the screenshots in docs/img, made anew
# make lab                  JupyterLab on the notebooks
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?=
SERVE  ?= 1
PORT   ?= 7860
RUN    ?= runs/demo
# counted by the shell: the name of the folder may hold spaces
FOLDS  ?= $(shell n=$$(ls -d "$(DATA)"/fold_*/ "$(DATA)"/*/fold_*/ 2>/dev/null | wc -l); echo $$((n ? n : 5)))
SAMPLE := data/synthetic_silkworms
TRAIN_ARGS ?=

export NO_ALBUMENTATIONS_UPDATE := 1
export GRADIO_ANALYTICS_ENABLED := False

.PHONY: demo silkworm has-data public test test-other-cpu test-oldest notebooks docs pictures lab env clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,11s/^# //p' Makefile

env: $(VENV)/.ready

# The virtual environment is made again whenever the requirements change.
$(VENV)/.ready: settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(PYTHON) is older than Python 3.10; name a newer one with make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install the package python3-venv"; exit 2; }
	@echo "Installing the packages named in settings.ini into $(VENV) (torch among them: some minutes the first time)"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar off -e ".[dev]"
	@touch $@

# Few drawings, looked at with 128 pixels: with 288, as photographs are, a demo would take several times as long.
demo: env
ifeq ($(strip $(DATA)),)
	$(BIN)/python data_prep/make_sample.py $(SAMPLE) --n_per_class 100
	$(BIN)/silkworm-train --data_path $(SAMPLE) --output_dir "$(RUN)" --overwrite --input_size 128 $(TRAIN_ARGS)
else
	$(BIN)/silkworm-train --data_path "$(DATA)" --output_dir "$(RUN)" --overwrite $(TRAIN_ARGS)
endif
ifneq ($(SERVE),0)
	$(BIN)/python app.py --bundle "$(RUN)/bundle" --port $(PORT)
endif

has-data:
	@test -n "$(strip $(DATA))" || { echo "make: name the folder of your pictures: make silkworm DATA=folder"; exit 2; }

silkworm: RUN = runs/silkworm
silkworm: has-data env
	$(BIN)/silkworm-train --data_path "$(DATA)" --output_dir "$(RUN)" --cross_validate $(FOLDS) $(TRAIN_ARGS)
	@echo; cat "$(RUN)/bundle/card.md"

public: env
	@test -n "$(strip $(DEST))" || { echo "make: name the folder to make: make public DEST=folder"; exit 2; }
	$(BIN)/python data_prep/public.py "$(DEST)" $(PUBLIC_ARGS)

test: env
	$(BIN)/python tests/check_notebooks.py
	$(BIN)/python tests/run_notebooks.py --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder
	@if grep -qs avx512f /proc/cpuinfo; then $(MAKE) --no-print-directory test-other-cpu; else echo "What trains was run without AVX-512."; fi

# A net that was trained is another one on another processor; no test may hang on the luck of one.
OTHER_CPU := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
TRAINS := $(addprefix nbs/train/,01_callback.ipynb 02_resume.ipynb 05_recipe.ipynb 06_learner.ipynb)

test-other-cpu: env
	@export $(OTHER_CPU); $(BIN)/python tests/run_notebooks.py --check $(TRAINS) & \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $$(grep -l mark.trains tests/test_*.py) -m "trains and not slow"; tests=$$?; wait $$! && exit $$tests

# A lower bound that was never tried is a guess: the packages of today may no longer go with it.
test-oldest:
	$(PYTHON) -m venv .venv_oldest
	sed -n 's/^.*[= ]\([a-z][a-z0-9-]*\)>=\([0-9.]*\).*/\1==\2/p' settings.ini > .venv_oldest/oldest.txt
	.venv_oldest/bin/python -m pip install --quiet --progress-bar off -c .venv_oldest/oldest.txt -e ".[dev]"
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/.venv_oldest/bin:$$PATH" .venv_oldest/bin/python -m pytest tests -n 2 --dist loadfile

# What the notebooks show is kept in them: drawings and numbers, never photographs (SILKWORM_DATA is not looked at).
notebooks: env
	$(BIN)/python tests/run_notebooks.py
	$(BIN)/nbdev-clean

docs: env
	$(BIN)/python -m pip install --quiet --progress-bar off -e ".[docs]"
	DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	$(BIN)/python docs/site/check.py

# The pictures of the manual: screenshots of commands and pages at work on drawings, in docs/img (some minutes, and a Chromium).
pictures: env
	$(BIN)/python docs/site/pictures.py

lab: env
	$(BIN)/python -m pip install --quiet --progress-bar off -e ".[lab]"
	$(BIN)/jupyter lab nbs

clean:
	rm -rf $(VENV) _site build dist *.egg-info _proc
