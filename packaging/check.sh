#!/usr/bin/env bash
# Formatting, vet, the linters, and a build of the programs for each system that users have.
set -euo pipefail
cd "$(dirname "$0")/.."

unformatted=$(git ls-files -z '*.go' | xargs -0 gofmt -l)
[ -z "$unformatted" ] || { echo "not formatted with gofmt: $unformatted" >&2; exit 1; }

for os in linux darwin windows; do
	for arch in amd64 arm64; do
		echo "build and vet $os/$arch"
		GOOS=$os GOARCH=$arch CGO_ENABLED=0 go build -o /dev/null ./cmd/coracle
		GOOS=$os GOARCH=$arch CGO_ENABLED=0 go build -o /dev/null ./cmd/coracled
		GOOS=$os GOARCH=$arch CGO_ENABLED=0 go vet ./...
	done
done

for lint in staticcheck ineffassign; do
	echo "$lint"
	go tool -modfile=packaging/lint/go.mod "$lint" ./...
done
