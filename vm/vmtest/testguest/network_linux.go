package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/coracle-engine/coracle/vm/vmtest"
)

// networkModules is where a test that wants a network puts the modules for it, named so that their order is the right one.
const networkModules = "/network"

// behaveOnTCP brings up the network, in an initramfs that has the modules for it, and then serves vmtest.Behave's ports on
// TCP for as long as the guest lives. It returns when they answer.
func behaveOnTCP() error {
	modules, err := os.ReadDir(networkModules)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list network's modules: %w", err)
	}
	for _, m := range modules {
		if err := load(filepath.Join(networkModules, m.Name())); err != nil {
			return fmt.Errorf("load %s: %w", m.Name(), err)
		}
	}
	for name, address := range map[string][2][]byte{
		"lo":   {{127, 0, 0, 1}, {255, 0, 0, 0}},
		"eth0": {{10, 0, 2, 15}, {255, 255, 255, 0}}, // where QEMU's network for users expects its guest
	} {
		if err := configure(name, address[0], address[1]); err != nil {
			return fmt.Errorf("configure %s: %w", name, err)
		}
	}
	t := tcp{make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- vmtest.Behave(context.Background(), t) }()
	select {
	case <-t.ready:
		fmt.Println("testguest: TCP is served")
		return nil
	case err := <-ended:
		return fmt.Errorf("serve TCP: %w", err)
	}
}

// configure gives a network interface its address and mask and brings it up (netdevice(7)).
func configure(name string, address, mask []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	for _, set := range []struct {
		request uint
		value   []byte
	}{{unix.SIOCSIFADDR, address}, {unix.SIOCSIFNETMASK, mask}} {
		if err := r.SetInet4Addr(set.value); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.request, r); err != nil {
			return err
		}
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return err
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// tcp is a network on which the host cannot be called. Who is asked to dial at all is Behave, that it listens.
type tcp struct{ ready chan struct{} }

func (tcp) Listen(port uint32) (net.Listener, error) {
	return net.Listen("tcp4", ":"+strconv.Itoa(int(port)))
}

func (t tcp) Dial(port uint32) (net.Conn, error) {
	if port == vmtest.PortReady {
		close(t.ready)
	}
	return nil, errors.ErrUnsupported
}
