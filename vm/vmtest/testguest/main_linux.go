package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/coracle-engine/coracle/vm/vmtest"
)

func main() {
	fmt.Println("testguest: init runs")
	err := run()
	switch {
	case errors.Is(err, vmtest.ErrPowerOff):
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case errors.Is(err, vmtest.ErrCrash):
		err = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	}
	// Init's end is a kernel panic, which is how the host learns of a failure here.
	fmt.Println("testguest:", err)
	os.Exit(1)
}

func run() error {
	for target, fstype := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		os.MkdirAll(target, 0o755)
		if err := unix.Mount(fstype, target, fstype, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	fmt.Println("testguest: vsock is loaded")
	if err := behaveOnTCP(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	p := newProduct()
	if err := p.serve(ctx, &wg); err != nil {
		return err
	}
	return vmtest.Behave(ctx, system{p})
}

// loadModules loads what modules.coracle (see images/build) has of the classes root and vsock, in its order.
func loadModules() error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("ask the kernel's release: %w", err)
	}
	list, err := os.Open("/lib/modules/" + unix.ByteSliceToString(uts.Release[:]) + "/modules.coracle")
	if err != nil {
		return fmt.Errorf("open list of modules: %w", err)
	}
	defer list.Close()
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		// NAME CLASS PATH [DEP...]
		f := strings.Fields(lines.Text())
		if len(f) < 3 || f[0] == "#" || f[1] != "vsock" && f[1] != "root" {
			continue
		}
		if err := load(f[2]); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", f[0], err)
		}
	}
	return lines.Err()
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// Run runs a program that a test put into the initramfs. "share TAG PATH" and "publish ADDRESS:PORT" are of our own.
func (s system) Run(ctx context.Context, words []string) (string, error) {
	if words[0] == "share" && len(words) == 3 {
		return "", s.product.show(ctx, words[1], words[2])
	}
	if words[0] == "publish" && len(words) == 2 {
		return "", s.product.publish(ctx, words[1])
	}
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", words[0], err, out)
	}
	return string(out), err
}

// system is AF_VSOCK, virtio-fs, and the network where the tests brought one.
type system struct{ product *product }

// mounted counts who uses what is mounted, by tag.
var mounted = struct {
	sync.Mutex
	users map[string]int
}{users: map[string]int{}}

// Mount mounts the device with tag for its first user, and unmounts it after its last.
func (system) Mount(tag string) (fs.FS, func() error, error) {
	mounted.Lock()
	defer mounted.Unlock()
	dir := "/run/" + tag
	if mounted.users[tag] == 0 {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, nil, err
		}
		if err := unix.Mount(tag, dir, "virtiofs", 0, ""); err != nil {
			return nil, nil, fmt.Errorf("mount %s: %w", tag, err)
		}
	}
	mounted.users[tag]++
	return os.DirFS(dir), func() error {
		mounted.Lock()
		defer mounted.Unlock()
		if mounted.users[tag]--; mounted.users[tag] > 0 {
			return nil
		}
		return unix.Unmount(dir, 0)
	}, nil
}

func (system) Exchange(datagram []byte) ([]byte, error) {
	c, err := net.Dial("udp4", net.JoinHostPort(vmtest.CableHost, strconv.Itoa(vmtest.EchoPort)))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(datagram); err != nil {
		return nil, err
	}
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	return b[:n], err
}

func (system) Listen(port uint32) (net.Listener, error) { return vsock.Listen(port, nil) }

func (system) Dial(port uint32) (net.Conn, error) { return vsock.Dial(vsock.Host, port, nil) }
