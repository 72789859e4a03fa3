// Package qemu is the vm.Driver for Linux hosts: it launches one QEMU process per machine and owns all that is QEMU's, that
// is its command line, its monitor (QMP), the probe that says whether KVM really runs, and what an end of the process
// means. Streams to the guest and the files it is served go through vhost-user devices that live in this process
// (vm/vhostuser/vsock and fs), so nothing here needs privileges. The monitor, the devices and the network's cable are
// inherited socket pairs: no path names them and nobody else can connect. Above it is vm; elsewhere than on Linux the
// package is empty.
package qemu
