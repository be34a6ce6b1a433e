# The two commands that need nothing but Python 3.11 or newer (the pins' choice; the package takes 3.10), a C++ compiler and CMake's wheel from the package index:
#   make demo   installs into .venv and runs the demo
#   make test   installs into .venv, lints and runs every test
# PYTHON names another interpreter.

PYTHON ?= python3
VENV := .venv
# Busy-waiting OpenMP threads stall each other by the factor of 100 as soon as anything else runs on the machine.
export OMP_WAIT_POLICY ?= PASSIVE
BIN := $(VENV)/bin
# Tests run in a process for each processor; one that is done takes tests from the others, whichever file they are of.
# Freed memory stays with the process: a fresh page costs as much as to fill it, and float64 copies of models are large.
PYTEST = MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 $(BIN)/pytest -n auto --dist worksteal
QUICK = $(wildcard tests/test_*.py) $(addprefix tests/,ops/test_steps.py ops/test_convolution.py engines/test_hooks.py) \
	$(addprefix tests/compiler/,ir passes sparsity/test_sparsity.py native/test_executable.py native/test_fusion.py)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml setup.py MANIFEST.in CMakeLists.txt constraints.txt Makefile \
	$(shell find csrc gaia_fast -name '*.py' -o -name '*.pyi' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.safetensors') \
	$(wildcard gaia_fast/serving/page/*.* cmake/*)
CONFIGURE = $(BIN)/cmake -S . -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	-DCMAKE_PREFIX_PATH=$$($(BIN)/python -m pybind11 --cmakedir)

.PHONY: demo test quick lint unit interpreted instrumented dev triton-server bench docs fuzz clean

demo: $(VENV)/installed
	$(BIN)/gaia-fast demo

test: lint unit interpreted instrumented

# Tests run against the installed package: the source tree holds no compiled extension, and pytest does not add it to the path.
unit: $(VENV)/test-tools
	$(PYTEST)

# What to run while editing, in about a minute, on the package as it is: `make dev` puts the tree on the path.
quick:
	@test -x $(BIN)/pytest || { echo "run make dev first"; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -q -m "not architectures" $(QUICK)

# GPU kernels without a GPU, each in a process of its own: Triton's in its interpreter, and CUDA's as C++, together with
# the C++ kernels, under AddressSanitizer and UndefinedBehaviorSanitizer, whose reports pytest must not swallow.
interpreted: $(VENV)/test-tools
	TRITON_INTERPRET=1 $(PYTEST) tests/ops tests/compiler/runtimes/test_recorded.py -W ignore::RuntimeWarning:triton.runtime.interpreter

instrumented: $(VENV)/test-tools
	$(CONFIGURE) -B build/instrumented -DGAIA_FAST_CUDA=emulated -DGAIA_FAST_SANITIZE=ON
	$(BIN)/cmake --build build/instrumented
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 GAIA_FAST_TEST_KERNELS="$$(echo build/instrumented/_kernels*.so)" $(PYTEST) tests/ops \
		tests/compiler/runtimes/test_recorded.py --capture=sys

lint: $(VENV)/test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/mypy benchmarks
	$(BIN)/clang-format --dry-run --Werror $$(find csrc examples tests/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: left to itself, the index's newest build brings gigabytes of CUDA libraries along.
$(VENV)/torch: constraints.txt | $(VENV)/bin/pip
	$(PIP) -c constraints.txt torch
	touch $@

# The sdist, and the wheel from it, built without torch in sight: what is tested is what a release is. An egg-info would
# carry files into them that the source no longer has.
$(VENV)/installed: $(VENV)/torch $(SOURCES)
	rm -rf build/sdist build/wheel *.egg-info gaia_fast/_kernels*.so
	rm -f $(VENV)/lib/python*/site-packages/gaia_fast_dev.pth
	$(PIP) -c constraints.txt build
	$(BIN)/python -m build --quiet --sdist --outdir build/sdist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel build/sdist/*.tar.gz
	$(PIP) --force-reinstall --no-deps build/wheel/*.whl
	$(PIP) -c constraints.txt "$$(echo build/wheel/*.whl)[plot]"
	touch $@

# These without their dependencies: torchvision's would replace torch.
$(VENV)/test-tools: $(VENV)/installed
	$(PIP) -c constraints.txt "$$(echo build/wheel/*.whl)[test,lint]" pyyaml pybind11
	$(PIP) -c constraints.txt --no-deps torchvision timm pytorch-ood
	touch $@

docs: $(VENV)/test-tools
	$(PIP) -c constraints.txt pdoc
	$(BIN)/pdoc --output-directory build/api gaia_fast

# For work on the code: the extension is built into the source tree, which is put on the path.
dev: $(VENV)/test-tools
	$(PIP) -c constraints.txt pre-commit pdoc
	$(BIN)/pip uninstall --quiet --yes gaia-fast
	$(CONFIGURE) -B build/dev -DCMAKE_INSTALL_PREFIX=$(CURDIR)
	$(BIN)/cmake --build build/dev
	$(BIN)/cmake --install build/dev
	$(BIN)/python -c "import site; open(site.getsitepackages()[0] + '/gaia_fast_dev.pth', 'w').write('$(CURDIR)')"
	rm -f $(VENV)/installed

# NVIDIA's own server, in an environment for itself: its Python backend takes no NumPy 2. Everything else it has from here.
build/triton-server: $(VENV)/test-tools
	$(BIN)/python -m venv $@
	$@/bin/pip install --quiet --disable-pip-version-check "numpy<2"
	$@/bin/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt nvidia-pytriton

triton-server: build/triton-server
	$(BIN)/python -c "import gaia_fast, torch; [print(m.__path__[0].rpartition('/')[0]) for m in (gaia_fast, torch)]" \
		> $$(echo build/triton-server/lib/python*/site-packages)/gaia_fast_tests.pth
	GAIA_FAST_TRITON_SERVER=build/triton-server $(BIN)/pytest tests/integrations/test_triton_server.py

bench: $(VENV)/test-tools
	$(BIN)/pytest benchmarks/test_engines.py benchmarks/test_kernels.py --benchmark-disable-gc -q --results benchmarks/results/cpu.json
	$(BIN)/pytest benchmarks/test_compiled.py --benchmark-disable-gc -q --results benchmarks/results/compiled-cpu.json
	rm -f benchmarks/results/runtimes-cpu.json
	$(BIN)/python benchmarks/runtimes.py all --images 1 8 --threads 1 2 --results benchmarks/results/runtimes-cpu.json

# Random networks, each engine against an oracle in float64; see tests/fuzz. SUBJECTS names engines, SEED the first draw.
fuzz: $(VENV)/test-tools
	PYTHONPATH=tests $(BIN)/python -m fuzz.run --draws $(or $(N),500) --seed $(or $(SEED),0) \
		$(if $(SUBJECTS),--subjects $(SUBJECTS)) $(if $(DTYPES),--dtypes $(DTYPES)) $(if $(JOBS),--jobs $(JOBS))

clean:
	rm -rf $(VENV) build *.egg-info
