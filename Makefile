# Every target sets itself up from a bare clone, in a virtual environment of its own.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The core needs nothing but Python: it is tested without torch, under any Python.
CORE_VENV ?= .venv-core
# Ray is large, and only its own tests need it; torch they find in the other environment.
RAY_VENV ?= .venv-ray
CORE_TESTS := $(addprefix tests/test_,auth.py broadcast.py codec.py encrypted.py every_worker.py group.py inherited.py process.py values.py wire.py worker_server.py)
# Parts of the tests that touch no file of each other's: make test PART=course, faults, programs or package.
COURSE_TESTS := stages $(addprefix tests/test_,benchmarks.py browser.py carry.py completion.py demo.py examples.py \
	exercises.py labs.py mutants.py package.py site.py stages.py tidy.py)
FAULT_TESTS := $(addprefix tests/test_,faults.py interrupts.py keeper.py lost_machine.py outer_rank.py recovery.py restarts.py)
PROGRAM_TESTS := $(addprefix tests/test_,codec.py doctor.py fuzz.py notebooks.py run.py simulation.py values.py wire.py)
TESTS_course := $(COURSE_TESTS)
TESTS_faults := $(FAULT_TESTS)
TESTS_programs := $(PROGRAM_TESTS)
TESTS_package := tests $(addprefix --ignore=,$(COURSE_TESTS) $(FAULT_TESTS) $(PROGRAM_TESTS))
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast mutants fuzz test-core test-ray lint bench docs docs-serve package clean

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.demo ## Train a small GPT with FSDP on 2 x 4 fake GPUs (under two minutes)
	@$(BIN)/miniray demo

test: $(VENV)/.dev ## Run every test that this machine can run, slow ones too
	@$(BIN)/python -m pytest -m "not gpu and not ray" $(TESTS_$(PART))

test-fast: $(VENV)/.dev ## Run the tests without the slow ones
	@$(BIN)/python -m pytest

mutants: $(VENV)/.dev ## Test the tests: break the core in 300 ways and see what they notice (some hours)
	@$(BIN)/python -m tools.mutants

fuzz: $(VENV)/.dev ## Fuzz what reads bytes from outside, a minute before the handshake and one after it
	@for target in before after; do $(BIN)/python -m tests.fuzz $$target || exit 1; done

test-core: ## Run the core's tests without torch: make test-core PYTHON=python3.13
	@rm -rf $(CORE_VENV) && tools/environment $(CORE_VENV) dev
	@$(CORE_VENV)/bin/python -m pytest -k "not cluster" $(CORE_TESTS)

test-ray: $(VENV)/.dev ## Run the tests of workers on Ray, on a Ray of their own (all: SLOW=1)
	@tools/environment $(RAY_VENV) ray,dev
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		>"$$($(RAY_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz-torch.pth"
	@$(RAY_VENV)/bin/python -m tests.support.ray_head $(RAY_VENV)/bin/python -m pytest --timeout 300 \
		-m "ray$(if $(SLOW),, and not slow)" $(addprefix tests/test_,every_worker.py ray_cluster.py)

lint: $(VENV)/.dev ## Check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(VENV)/.dev ## Measure miniray beside the limit and the peers
	@$(BIN)/python -m benchmarks

docs: $(VENV)/.dev ## Build the site, with no warning allowed, into site/
	@$(BIN)/python -m tools.site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "the site is in site/index.html; to read it with its search: make docs-serve"

docs-serve: $(VENV)/.dev ## Build the site and serve it at 127.0.0.1:8000
	@$(BIN)/python -m tools.site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8000

package: $(VENV)/.dev ## Build the wheel and the source release into dist/
	@$(BIN)/python -m tools.package

clean: ## Remove the virtual environment and every cache
	@rm -rf $(VENV) .venv-* dist site docs/generated .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says which extras are installed; it is older than pyproject.toml after a change there.
$(VENV)/.demo: pyproject.toml constraints.txt
	@tools/environment $(VENV) torch,cli
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@tools/environment $(VENV) torch,cli,scripts,dev,docs,fuzz
	@touch $@ $(VENV)/.demo
