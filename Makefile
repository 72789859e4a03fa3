# Coracle: every target is one idea; `make` alone lists them.
SHELL := /bin/bash
GOARCH ?= $(shell go env GOARCH)
export CGO_ENABLED ?= 0
GOFLAGS_BUILD := -trimpath -buildvcs=false

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: run
run: all ## install what is missing, build all, boot, build an image, run a container through the forwarded socket
	@packaging/demo/run.sh

.PHONY: test
test: ## everything: set-up, unit tests, checks, then the tests that boot virtual machines
	@packaging/test.sh

.PHONY: all
all: deps build clients images ## build everything for this machine

.PHONY: deps
deps: ## install the Debian packages that building and running need, where missing
	@packaging/deps.sh

.PHONY: build
build: ## coracle and coracled into build/bin
	go build $(GOFLAGS_BUILD) -o build/bin/ ./cmd/coracle ./cmd/coracled

.PHONY: clients
clients: ## the docker CLI, compose and buildx that come with us, into build/libexec/coracle
	go run ./packaging/build -out build/libexec/coracle

.PHONY: images
images: ## the guest image for this machine's architecture, into build/image
	go run ./images/build -arch $(GOARCH)

.PHONY: images-arm64
images-arm64: ## the guest image for arm64
	go run ./images/build -arch arm64

.PHONY: pack
pack: images ## the guest image in the form that is downloaded, into build/dist; fails above the size that we promise
	go run ./images/build -arch $(GOARCH) -pack build/dist/coracle-image-$(GOARCH).tar.zst

.PHONY: unit
unit: ## the tests that need no virtual machine, root or network
	CGO_ENABLED=1 go test -race ./...

.PHONY: vm
vm: ## the tests that boot virtual machines
	CORACLE_VM=1 go test -count=1 -timeout 30m -p 1 ./vm/... ./e2e/...

.PHONY: check
check: ## vet, lint, formatting, and builds for every system and architecture
	@packaging/check.sh

.PHONY: bench
bench: ## the benchmarks behind SPECIFICATION.md
	CORACLE_VM=1 go test -run '^$$' -bench . -benchtime 2s -timeout 30m -p 1 ./host/share ./host/network ./host/dockerproxy ./vm/... ./e2e/...

.PHONY: clean
clean: ## remove what was built; machines and their data stay
	rm -rf build
