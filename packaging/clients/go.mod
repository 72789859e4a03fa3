module github.com/coracle-engine/coracle/packaging/clients

go 1.26

tool (
	github.com/docker/buildx/cmd/buildx
	github.com/docker/cli/cmd/docker
	github.com/docker/compose/v5/cmd
)

require (
	github.com/docker/buildx v0.38.2
	github.com/docker/cli v29.9.3+incompatible
	github.com/docker/compose/v5 v5.7.0
)
