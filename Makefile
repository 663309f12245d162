# `make demo` and `make test` set themselves up in .venv first; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test lint clean

demo: $(READY)
	@echo "demo: a pretrained network is fine-tuned with three heads on photographs, tested, explained; about four minutes on two cores"
	$(BIN)/python tools/demo.py --out out/demo

test: $(READY)
	@echo "test: all tests but the slow ones; about three and a half minutes on two cores"
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed, this is ' + sys.version.split()[0])"
	@echo "set-up: PyTorch and the other packages go into .venv, once; two to ten minutes, six gigabytes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

clean:
	rm -rf .venv out
