# Everything here runs from a fresh clone with nothing but Python >= 3.11 and make.
#
#   make demo       the main job, on the shipped model: pictures and a report
#   make test       the tests, the doctests and the notebooks
#   make check      format, lint, types, floors (no model is loaded)
#   make test-tl3   what must also hold under TransformerLens 3.9
#   make bench      every sweep beside other libraries, on one thread; minutes
#   make docs       the documentation, into docs/_build; a warning stops it
#   make figures    the pictures of the README and the documentation, made again
#   make clean      take away what was set up here
#
# Which Python runs them:
#
#   nothing said              .venv, made here, with the versions in constraints.txt
#   an activated environment  that one; what it has stays, what it lacks is installed
#   PYTHON=/path/to/python    that one; nothing is installed, only checked
#
# A torch that is already there is kept. ARGS="..." is handed on to demo, to pytest, and
# (names of figures) to figures.

SHELL := /bin/sh
TORCH ?= torch
TL3 := 3.9.0
RIVALS := nnsight==0.8.1 pyvene==0.1.8

ifneq ($(strip $(PYTHON)),)
  MODE := given
  PY := $(PYTHON)
  TL3_PY := $(PYTHON)
else ifneq ($(filter-out $(CURDIR)/.venv,$(VIRTUAL_ENV)),)
  MODE := active
  HOME_OF := $(VIRTUAL_ENV)
else
  MODE := own
  HOME_OF := .venv
endif

ifneq ($(MODE),given)
  PY := $(HOME_OF)/bin/python
  TL3_HOME := .venv-tl3
  TL3_PY := $(TL3_HOME)/bin/python
  READY := $(HOME_OF)/.mechvlm-ready
  TL3_READY := $(TL3_HOME)/.mechvlm-ready
  RIVALS_READY := .venv-bench/.mechvlm-ready
endif

# Prints constraints.txt without the packages that keep the version they have: torch,
# the named ones, and in an activated environment ("active") all that is installed.
define PINS
import re, sys
from importlib.metadata import distributions
from pathlib import Path
def key(name): return re.sub("[-_.]+", "-", name).lower()
has = {key(d.metadata["Name"]) for d in distributions()}
mode, *named = sys.argv[1:]
keep = (has if mode == "active" else has & {"torch"}) | set(named)
for line in Path("constraints.txt").read_text().splitlines():
    if "==" in line and key(line.split("==")[0]) not in keep: print(line)
endef
export PINS

# Says what PYTHON lacks. Its arguments: the extras that the target needs.
define LACKS
import re, sys
if sys.version_info < (3, 11):
    sys.exit("mechvlm needs Python 3.11 or newer; %s is %d.%d." % (sys.executable, *sys.version_info[:2]))
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
needs = project["dependencies"] + [
    need for extra in sys.argv[1:] for need in project["optional-dependencies"][extra]
]
lacks = []
for need in needs:
    name, ranges = re.match(r"([\w.-]+)(.*)", need).groups()
    try:
        has = version(name)
    except PackageNotFoundError:
        lacks.append(f"  {need}: not installed")
        continue
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:
        continue
    if not SpecifierSet(ranges).contains(has, prereleases=True):
        lacks.append(f"  {need}: {has} is installed")
if lacks:
    extras = f"[{','.join(sys.argv[1:])}]" if sys.argv[1:] else ""
    sys.exit("\n".join([
        f"{sys.executable} lacks what mechvlm needs:", *lacks,
        "PYTHON=... installs nothing. Either install it yourself (torch first, in the",
        "build that fits your machine: any >= 2.6 will do),",
        f"    {sys.executable} -m pip install -e '.{extras}'",
        "or leave PYTHON away: make then sets up .venv (or the activated environment).",
    ]))
endef
export LACKS

# $(call install,PYTHON,MODE,PACKAGES THAT REPLACE THEIR PINS)
define install
	@$(1) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mechvlm needs Python 3.11 or newer.")'
	@$(1) -m pip --version >/dev/null 2>&1 || $(1) -m ensurepip
	@$(1) -c "$$PINS" $(2) > $(@D)/.mechvlm-torch-pins
	@$(1) -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null \
	  || $(1) -m pip install -q -c $(@D)/.mechvlm-torch-pins $(TORCH)
	@$(1) -c "$$PINS" $(2) $(foreach one,$(3),$(firstword $(subst ==, ,$(one)))) > $(@D)/.mechvlm-pins
	@$(1) -m pip install -q -c $(@D)/.mechvlm-pins -e '.[dev,docs,notebooks]' $(3)
	@rm -f $(@D)/.mechvlm-pins $(@D)/.mechvlm-torch-pins
	@touch $@
endef

.PHONY: demo test test-tl3 check bench docs figures clean setup \
  need-core need-dev need-docs

demo: need-core
	$(PY) -m mechvlm demo $(ARGS)

test: need-dev
	$(PY) -m pytest -n 2 $(ARGS)
# Two at once with a thread each: with more, their threads wait for each other.
ifneq ($(wildcard notebooks/*.ipynb),)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --nbmake --nbmake-timeout=900 notebooks
endif

check: need-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_floors.py

# Libraries that are not there are left out, and the result says so.
bench: need-core $(TL3_READY) $(RIVALS_READY)
	OMP_NUM_THREADS=1 $(PY) benchmarks/everything.py $(ARGS)
	$(PY) benchmarks/table.py

docs: need-docs
	OMP_NUM_THREADS=1 $(PY) -m sphinx -q -E -W --keep-going docs docs/_build $(ARGS)
	@echo "docs/_build/index.html"

figures: need-core
	OMP_NUM_THREADS=1 $(PY) docs/figures.py $(ARGS)

setup: need-dev

ifeq ($(MODE),given)

need-core:
	@$(PY) -c "$$LACKS"

need-dev:
	@$(PY) -c "$$LACKS" dev notebooks

need-docs:
	@$(PY) -c "$$LACKS" docs

test-tl3: need-dev
	@$(PY) -c 'from importlib.metadata import version as v; import sys; sys.exit(v("transformer-lens")[:2] != "3." and "PYTHON has TransformerLens " + v("transformer-lens") + "; this target is for 3.9")'
	$(PY) -m pytest -m tl3 $(ARGS)

else

need-core need-dev need-docs: $(READY)

test-tl3: $(TL3_READY)
	$(TL3_PY) -m pytest -m tl3 $(ARGS)

endif

# The first of these that is new enough makes the environments.
BOOT = $(firstword $(foreach one,python3 python3.14 python3.13 python3.12 python3.11 python,\
  $(shell $(one) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(one))))

%/bin/python:
	@test -n "$(BOOT)" || { echo "make: no Python 3.11 or newer on the PATH. If you have one elsewhere: /path/to/python3 -m venv $*, then make again" >&2; exit 1; }
	@echo "Setting up $* (once; a few minutes)"
	@$(BOOT) -m venv $* || { rm -rf $*; echo "make: $(BOOT) could not make $*; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

.venv/.mechvlm-ready: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,$(PY),own,)

.venv-tl3/.mechvlm-ready: pyproject.toml constraints.txt | .venv-tl3/bin/python
	$(call install,$(TL3_PY),own,transformer-lens==$(TL3))

.venv-bench/.mechvlm-ready: pyproject.toml constraints.txt | .venv-bench/bin/python
	$(call install,.venv-bench/bin/python,own,$(RIVALS))

ifeq ($(MODE),active)
$(READY): pyproject.toml constraints.txt
	@echo "Installing what is missing into the activated environment $(HOME_OF)"
	$(call install,$(PY),active,)
endif

clean:
	rm -rf .venv .venv-tl3 .venv-bench .mypy_cache .pytest_cache .ruff_cache .hypothesis mechvlm-demo mechvlm-notebooks docs/_build
