// Command testguest is the init of the virtual machine that the conformance suite boots: it loads the vsock modules that
// the initramfs holds and runs vmtest.Behave. The tests of a driver build it and append it to an image's initramfs; it is
// part of no product.
package main
