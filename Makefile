# make app    set up and open the dashboard
# make test   set up and run every test
#
# PIP_ARGS is passed to pip, PYTHON names the interpreter to build on, PORT and WORKSPACE go to the dashboard.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PORT ?= 8501
WORKSPACE ?=
PYTEST_ARGS ?=
NEEDED_GB := 8
STAMP := $(VENV)/.set-up
BIN := $(VENV)/bin
TEST_JOBS ?= 2

.PHONY: app test lint typecheck setup clean
.DELETE_ON_ERROR:

app: $(STAMP)
	@$(BIN)/qaf app --port $(PORT) $(if $(WORKSPACE),--workspace "$(WORKSPACE)")

test: $(STAMP)
	@browser=$$(command -v chromium || command -v chromium-browser || command -v google-chrome || true); \
	if [ -n "$$browser" ]; then echo "Browser test: with $$browser."; \
	else echo "Browser test: skipped, there is no system Chromium (Debian: apt-get install chromium)."; fi
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .

typecheck: $(STAMP)
	@$(BIN)/mypy

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed, and there is no $(PYTHON): install it, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, got $$($(PYTHON) -V 2>&1): name another with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@[ -x $(BIN)/streamlit ] || { free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); \
	[ "$$free" -ge $(NEEDED_GB) ] || { echo "Set-up needs $(NEEDED_GB) GB of free disk here, got $$free GB: free some space." >&2; exit 1; }; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing what qaf needs into $(VENV): the first time takes some minutes."
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[test,dev]' || { echo "Set-up failed: the lines above say why; once mended, the same command goes on where it stopped." >&2; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
