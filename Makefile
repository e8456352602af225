# Everything a fresh Debian 12 machine needs, and the two commands of the README.
PY := .venv/bin/python
.PHONY: setup demo test lint clean

setup:
	@sh scripts/setup

lint: setup
	.venv/bin/ruff check xapi_migrate plugins tests bench
	.venv/bin/mypy

test: lint
	$(PY) -m pytest

demo: setup
	@.venv/bin/python -m xapi_migrate.cli demo
