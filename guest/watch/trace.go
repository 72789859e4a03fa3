//go:build linux

package watch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// trace is the kernel's word that a socket began or ceased to listen: an instance of its tracer (Documentation/trace/ftrace.rst)
// with nothing in it but that. It tells of all networks, not of the guest's alone; and only that something happened: what it was
// is looked up.
type trace struct {
	root, dir string
	pipe      *os.File
	deaf      error // why it tells nothing of UDP; nil where it does
}

// probes are on the function that gives a UDP socket its port, which is where it begins to listen; 0 is asked for by clients.
var probes = map[string]string{"udp4": "udp_v4_get_port", "udp6": "udp_v6_get_port"}

// openTrace makes the instance, below the tracer's file system at root, which it mounts where it is not.
func openTrace(root string) (*trace, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return nil, fmt.Errorf("trace sockets: %w", err)
	}
	if fs.Type != unix.TRACEFS_MAGIC {
		if err := unix.Mount("tracefs", root, "tracefs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return nil, fmt.Errorf("trace sockets: mount tracefs: %w", err)
		}
	}
	t := &trace{root: root, dir: filepath.Join(root, "instances", "coracle")}
	if err := os.Mkdir(t.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("trace sockets: %w", err)
	}
	err := t.begin()
	if err == nil {
		t.pipe, err = os.Open(filepath.Join(t.dir, "trace_pipe"))
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("trace sockets: %w", err)
	}
	return t, nil
}

// begin chooses what is traced.
func (t *trace) begin() error {
	// One page is all that a word needs.
	if err := write(filepath.Join(t.dir, "buffer_size_kb"), "4"); err != nil {
		return err
	}
	// 10 is TCP_LISTEN.
	if err := t.enable("sock/inet_sock_set_state", "newstate == 10 || oldstate == 10"); err != nil {
		return err
	}
	if t.deaf = t.probeUDP(); t.deaf == nil {
		return nil
	}
	// Without probes: every bind of a socket of any kind, except those that 32-bit programs make.
	if err := t.enable("syscalls/sys_exit_bind", "ret == 0"); err == nil {
		t.deaf = nil
	}
	return nil
}

func (t *trace) probeUDP() error {
	for name, function := range probes {
		err := write(filepath.Join(t.root, "kprobe_events"), "p:coracle/"+name+" "+function+" port=$arg2:u16")
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := t.enable("coracle/"+name, "port != 0"); err != nil {
			return err
		}
	}
	return nil
}

func (t *trace) enable(event, filter string) error {
	dir := filepath.Join(t.dir, "events", event)
	if err := write(filepath.Join(dir, "filter"), filter); err != nil {
		return err
	}
	return write(filepath.Join(dir, "enable"), "1")
}

// write writes to a file of the kernel's, which takes the place of nothing: kprobe_events forgets all others when truncated.
func write(path, s string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(s)
	return err
}

// run calls kick after each word of the kernel, until ctx ends. Then the instance is gone.
func (t *trace) run(ctx context.Context, kick func()) {
	defer t.close()
	defer context.AfterFunc(ctx, func() { t.pipe.Close() })()
	for buf := make([]byte, 4096); ; {
		if _, err := t.pipe.Read(buf); err != nil {
			return
		}
		kick()
	}
}

func (t *trace) close() {
	if t.pipe != nil {
		t.pipe.Close()
	}
	_ = os.Remove(t.dir)
	for name := range probes {
		_ = write(filepath.Join(t.root, "kprobe_events"), "-:coracle/"+name)
	}
}

// destroyed is the kernel's word that UDP sockets of this network were destroyed (linux/sock_diag.h, SKNLGRP_INET_UDP_DESTROY):
// the tracer has no event for that.
type destroyed struct{ file *os.File }

func listenDestroyed() (*destroyed, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("hear of closed sockets: %w", err)
	}
	d := &destroyed{os.NewFile(uintptr(fd), "sock_diag")}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		d.file.Close()
		return nil, fmt.Errorf("hear of closed sockets: %w", err)
	}
	for _, group := range []int{2, 4} { // of IPv4's and IPv6's UDP sockets
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			d.file.Close()
			return nil, fmt.Errorf("hear of closed sockets: %w", err)
		}
	}
	return d, nil
}

// run calls kick for each closed socket that had one of the known ports, until ctx ends.
func (d *destroyed) run(ctx context.Context, known *portSet, kick func()) {
	defer d.file.Close()
	defer context.AfterFunc(ctx, func() { d.file.Close() })()
	for buf := make([]byte, 8192); ; {
		n, err := d.file.Read(buf)
		if errors.Is(err, unix.ENOBUFS) { // more than the kernel could keep for us
			kick()
			continue
		}
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				break
			}
			if body := b[unix.SizeofNlMsghdr:size]; len(body) >= 6 && known.has(binary.BigEndian.Uint16(body[4:])) {
				kick()
			}
			b = b[min(align(size), len(b)):]
		}
	}
}
