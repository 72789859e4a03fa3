// Package vsock is a virtio-vsock device (virtio 1.2 section 5.10) as a vhost-user back end: stream sockets between this
// process and one guest, with no kernel module and no privileges on the host. It owns the packets, the connections and
// their credit; vm/vhostuser below it owns the rings they travel in, and vm/qemu above it hands out Dial and Listen as a
// machine's own. It runs on Linux alone; elsewhere the package is empty.
package vsock
