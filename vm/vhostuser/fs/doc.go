// Package fs is a virtio-fs device (virtio 1.2 section 5.11) as a vhost-user back end: it carries FUSE requests
// (linux/fuse.h) from one guest to a vm.FileSystem in this process. It owns the request's way through the guest's memory and
// who answers it when; vm/vhostuser below it owns the rings, host/share above it, which it knows as a vm.FileSystem, owns
// what a request means. It runs on Linux alone; elsewhere the package is empty.
//
// The guest can change its memory while a request is looked at, so what a FileSystem parses is memory of our own: in[0] is the
// whole request, or, of a WRITE whose payload follows, its two headers, with the payload alone in the guest's memory behind
// it; out is one slice of our own, or, of a READ, room in the guest's memory, to be written once and never read. Neither may
// be used after Serve has returned.
package fs
