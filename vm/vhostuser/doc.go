// Package vhostuser is a vhost-user back end: the half of a virtio device that lives outside the hypervisor. It owns the
// protocol on the unix socket, the guest's memory as the front end (QEMU) shares it, and the split virtqueues in that
// memory. A Device above it (vm/vhostuser/vsock) owns what the queues carry; the front end below it is launched by vm/qemu.
//
// Everything that the guest writes is hostile: a Queue answers a bad ring with an error and stops, it never reads or writes
// outside the guest's memory. The protocol is QEMU's docs/interop/vhost-user.rst, the rings are virtio 1.2 section 2.7.
// It runs on Linux alone; elsewhere the package is empty.
package vhostuser
