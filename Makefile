# The front door. Everything behind it is meson (meson.build) and pip (pyproject.toml);
# .ci/setup makes the machine and .venv ready, and is quick when they are.
#
#   make demo       receive real traffic for a few seconds: AF_XDP as root, loopback UDP otherwise
#   make test       C and Python tests; those of AF_XDP as root
#   make test-vm    receive in small virtual machines: zero-copy drivers and older kernels
#   make bench      compare with spead2 and with floors (see docs/benchmarks.md)
#   make bench-all  the same with all curves, and the manual's figures of them
#   make lint       style, types and warnings
#   make docs       the manual, as web pages
#   make clean      remove what the others made

SHELL := /bin/sh
BUILD := build
VENV := .venv
PYTHON := $(VENV)/bin/python

# Under sudo, what is built belongs to the owner of the tree, so that a later run without works.
OWNER := $(shell stat -c %u .)
ifeq ($(shell id -u)-$(OWNER),0-$(SUDO_UID))
AS_OWNER := $(if $(filter-out 0,$(OWNER)),sudo -E -H -u \#$(OWNER) env "PATH=$$PATH")
endif
ifneq ($(AS_OWNER),)
export PYTHONDONTWRITEBYTECODE := 1
PYTEST_CACHE := -p no:cacheprovider
endif

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: setup demo test test-vm bench bench-all lint docs clean

setup:
	@.ci/setup

demo: setup
	@$(PYTHON) -P -m xdpspead demo $(DEMO_ARGS)

# All tests use all processors, but those that bound a time have them for themselves.
test:
	@.ci/setup test
	$(AS_OWNER) meson test -C $(BUILD) --no-rebuild --print-errorlogs
ifdef PYTEST_ARGS
	pytest $(PYTEST_CACHE) $(PYTEST_ARGS)
else
	pytest $(PYTEST_CACHE) -m "not timing" --numprocesses auto --dist worksteal
	pytest $(PYTEST_CACHE) -m timing
endif

test-vm:
	@.ci/setup test vm
	@$(PYTHON) -P tests/vm/run.py $(VM_ARGS)

bench:
	@.ci/setup test
	$(PYTHON) -P tests/bench/run.py $(BENCH_ARGS)

bench-all:
	@.ci/setup test bench
	$(PYTHON) -P tests/bench/run.py --parts table,curves --figures docs/figures $(BENCH_ARGS)

lint:
	@.ci/setup dev
	@.ci/lint

docs:
	@.ci/setup docs
	$(AS_OWNER) sphinx-build -q -n -W --keep-going -d $(BUILD)-docs/cache docs $(BUILD)-docs/html
	@echo "the manual: $(BUILD)-docs/html/index.html"

clean:
	rm -rf $(BUILD) $(BUILD)-* $(VENV) .cache/vm .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
