# The two commands of the README are `make demo` and `make test`; each sets the machine up first.
.PHONY: setup lint test test-all faults soak test-lvm test-xen demo bench clean

setup:
	@sh scripts/setup

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint
	@.venv/bin/python scripts/run_suites.py

# And every case of the tables of which `make test` takes a cover.
test-all: lint
	@.venv/bin/python scripts/run_suites.py fast model system every-cell

# Every fault at every point of a migration, on real processes, in LANES=2 labs side by side; PART="-k copier" a part.
faults: setup
	@LANES=$(or $(LANES),2) .venv/bin/python -m tests.faults.lanes $(PART)

# A guest moves back and forth a hundred times, with random cancels and kills; SOAK="10 SEED" for fewer.
soak: setup
	@.venv/bin/python -m tests.faults.soak $(SOAK)

# sm_lvm on real LVM, which needs a kernel with device-mapper: in a small virtual machine; ARGS="-k thin" and so on.
test-lvm: setup
	@.venv/bin/python plugins/sm_lvm/vm/run.py $(ARGS)

# The Xen driver on real Xen, which runs in a virtual machine: in QEMU, emulated; ARGS="-k two_daemons" and so on.
test-xen: setup
	@.venv/bin/python tests/xen/run.py $(ARGS)

demo: setup
	@.venv/bin/xapi-migrate demo

# A move beside the same one by plain QEMU; BENCH="--moves 2" and so on.
bench: setup
	@.venv/bin/python -m bench.migration $(BENCH)

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info plugins/*/*.egg-info
