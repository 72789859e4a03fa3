// Package qemu is the vm.Driver for Linux hosts: it launches one QEMU process per machine and owns all that is QEMU's, that
// is its command line, its monitor (QMP), the probe that says whether KVM really runs, and what an end of the process
// means. Streams to the guest go through a vhost-user vsock device that lives in this process (vm/vhostuser/vsock), so
// nothing here needs privileges. Monitor and vsock are inherited socket pairs: no path names them and nobody else can
// connect. Above it is vm; elsewhere than on Linux the package is empty.
package qemu
