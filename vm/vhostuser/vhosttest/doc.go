// Package vhosttest is the other side of a vhost-user back end, for tests: a front end that shares memory as QEMU does, and
// a driver's half of the split rings in it. It lets the tests of vm/vhostuser and of the devices on it play a guest, an
// honest or a hostile one, without a virtual machine. Only tests import it; it runs on Linux alone.
package vhosttest
