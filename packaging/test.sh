#!/usr/bin/env bash
# `make test`: sets up all it needs on a fresh machine, then runs every test there is. Unit tests come first: they need no
# virtual machine and fail fast.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (at %d s)\n' "$1" "$SECONDS"; }

step "packages"; packaging/deps.sh
step "unit tests"; make -s unit
step "checks"; make -s check
step "programs"; make -s build clients
step "guest images"; make -s images images-arm64
step "the image to download keeps its promised size"; make -s pack
step "image tests: the same inputs give the same bytes"; CORACLE_IMAGE_TEST=1 go test -count=1 -timeout 20m ./images/...
step "tests in virtual machines"; make -s vm
step "done"
