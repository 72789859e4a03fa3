#!/usr/bin/env bash
# Installs, by name and only where missing, the Debian packages that building and running Coracle need.
set -euo pipefail

packages=(
	ca-certificates git xz-utils zstd       # to fetch, unpack and pack
	gcc libc6-dev pkg-config                # runc is the one engine binary with cgo
	erofs-utils cpio e2fsprogs              # tests read images and disks back with another implementation
	fio iproute2 nftables                   # stories verify a share's contents and make networks of their own
	qemu-system-x86 qemu-system-arm         # the hypervisor, and the foreign architecture for its test
)
# The arm64 image is cross-compiled where the machine is not arm64 itself.
if [ "$(dpkg --print-architecture)" != arm64 ]; then
	packages+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
fi

missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

sudo=()
if [ "$(id -u)" -ne 0 ]; then
	command -v sudo >/dev/null || { echo "error: not root and no sudo; as root, run: apt-get install ${missing[*]}" >&2; exit 1; }
	sudo=(sudo)
fi
echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${sudo[@]}" apt-get update && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
	apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	cat "$log" >&2
	echo "error: could not install ${missing[*]}" >&2
	exit 1
fi
