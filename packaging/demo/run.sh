#!/usr/bin/env bash
# `make run`: boots the engine and uses it as a user would, from the command line.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PWD/build/bin:$PATH

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

say '$ coracle start'
coracle start

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CGO_ENABLED=0 GOOS=linux go build -o "$work/hello" ./packaging/demo
printf 'FROM scratch\nCOPY hello /hello\nENTRYPOINT ["/hello"]\n' >"$work/Dockerfile"

say '$ coracle docker build -t hello .   (FROM scratch, a static Go program)'
coracle docker build --progress=plain -t hello "$work"

say '$ coracle docker run --rm hello'
coracle docker run --rm hello

say 'What happened'
cat <<EOF
A Linux virtual machine was booted with the Docker Engine in it, an image was built and a container run, all through the
socket that is forwarded from it. The machine keeps running. Next:
  build/bin/coracle status     what it is and what it takes
  build/bin/coracle docker ps  the docker CLI that comes with it; any docker CLI works by the context "coracle"
  build/bin/coracle stop       power it off; its images, containers and volumes stay
EOF
