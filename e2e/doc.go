// Package e2e tells Coracle's stories through its finished programs: the built coracle, coracled, docker CLI and guest image,
// a real virtual machine, the real Docker Engine. It knows the programs by their command lines and sockets alone, as a user
// does. It boots nothing unless CORACLE_VM=1 is set (`make vm` sets it, after `make all`).
package e2e
