//go:build linux

package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vhostuser/fs"
)

// The accelerators that a machine can be launched with, as QEMU spells them.
const (
	kvm = "kvm"
	tcg = "tcg"
)

// launch is one QEMU as plain data.
type launch struct {
	cfg   vm.Config
	arch  string // as GOARCH
	accel string // kvm or tcg
	// oneThread has an emulated guest's CPUs take turns (see safeThreads).
	oneThread bool
	// The descriptors as the child numbers them: connected stream sockets. files and cable are there where cfg has a
	// FileSystem and Frames.
	monitor, vsock, files, cable int
}

// platform is what differs between guests' architectures.
type platform struct {
	binary  string // QEMU's
	pkg     string // Debian's package with it
	machine string // without accelerator and memory
	tcgCPU  string
	tcgArgs string // kernel arguments where instructions are emulated
	console string // the kernel's name of the first serial port
}

// platforms by GOARCH. The CPU models under TCG are named ones: with `max` a kernel double fault was seen (cmpxchg16b,
// thread=multi), and it was slower. Crypto self-tests and CPU mitigations cost an emulated guest seconds and buy nothing.
var platforms = map[string]platform{
	"amd64": {
		binary: "qemu-system-x86_64", pkg: "qemu-system-x86",
		// Devices that nobody drives cost the firmware and the kernel a probe each.
		machine: "q35,hpet=off,smbus=off,sata=off,usb=off,vmport=off,i8042=off",
		tcgCPU:  "Haswell", tcgArgs: "mitigations=off tsc=reliable cryptomgr.notests", console: "ttyS0",
	},
	"arm64": {
		binary: "qemu-system-aarch64", pkg: "qemu-system-arm",
		machine: "virt,gic-version=max",
		tcgCPU:  "neoverse-n1", tcgArgs: "mitigations=off cryptomgr.notests", console: "ttyAMA0",
	},
}

// args is QEMU's command line without the program's name. It is pure: the same launch gives the same words.
func (l launch) args() []string {
	p, mib := platforms[l.arch], strconv.FormatInt(l.cfg.Memory>>20, 10)
	a := []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-name", "guest=coracle-" + quote(l.cfg.Name) + ",debug-threads=on",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", p.machine + ",memory-backend=mem",
	}
	a = append(a, l.cpu(p)...)
	a = append(a,
		"-m", mib+"M",
		// The devices in our process read and write the guest's memory, so it is shared.
		"-object", "memory-backend-memfd,id=mem,share=on,size="+mib+"M",
		"-S", // the monitor lets it run, so that no event is missed
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", l.monitor),
		"-mon", "chardev=monitor,mode=control",
		"-kernel", l.cfg.Kernel, "-initrd", l.cfg.Initrd, "-append", l.cmdline(p),
	)
	if l.cfg.Console != "" {
		a = append(a, "-chardev", "file,id=console,append=on,path="+quote(l.cfg.Console), "-serial", "chardev:console")
	}
	for i, d := range l.cfg.Disks {
		a = append(a, disk(i, d)...)
	}
	return append(a, l.devices()...)
}

func (l launch) cpu(p platform) []string {
	model, accel := "host", "kvm"
	if l.accel == tcg {
		model, accel = p.tcgCPU, "tcg,thread=multi,tb-size=512"
		if l.oneThread {
			accel = "tcg,thread=single,tb-size=512"
		}
	}
	return []string{"-accel", accel, "-cpu", model, "-smp", strconv.Itoa(l.cfg.CPUs)}
}

// cmdline puts ours first: of two arguments that contradict each other the kernel takes the last. A panic resets the
// machine, which -no-reboot makes QEMU's end.
func (l launch) cmdline(p platform) string {
	words := []string{"panic=-1"}
	if l.cfg.Console != "" {
		words = append(words, "console="+p.console)
	}
	if l.accel == tcg {
		words = append(words, p.tcgArgs)
	}
	return strings.TrimSpace(strings.Join(append(words, l.cfg.Cmdline), " "))
}

// disk is a raw image and nothing else: no format is guessed, no path is a protocol. A write that finds the host's disk
// full stops the machine (werror=enospc); any other error is the guest's.
func disk(i int, d vm.Disk) []string {
	node, readOnly, trim := "disk"+strconv.Itoa(i), "off", ",discard=unmap,detect-zeroes=unmap"
	if d.ReadOnly {
		readOnly, trim = "on", ""
	}
	return []string{
		"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=%s%s,cache.direct=off,cache.no-flush=off,"+
			"file.driver=file,file.aio=threads,file.locking=on,file.filename=%s", node, readOnly, trim, quote(d.Path)),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s,write-cache=on,werror=enospc,rerror=report", node, quote(d.Serial)),
	}
}

func (l launch) devices() []string {
	a := append(l.network(),
		"-device", "virtio-rng-pci",
		// Pages that the guest no longer uses go back to the host.
		"-device", "virtio-balloon-pci,free-page-reporting=on",
	)
	a = append(a, backend("vsock", 1, l.vsock, "vhost-user-vsock-pci")...)
	if l.cfg.FileSystem != nil {
		// A request takes a ring entry for each page of it, unless it gets a table of its own. This is the longest ring.
		a = append(a, backend("files", 2, l.files, "vhost-user-fs-pci,queue-size=1024,num-request-queues="+
			strconv.Itoa(min(l.cfg.CPUs, fs.MaxRequestQueues))+",tag="+quote(l.cfg.FileSystemTag))...)
	}
	return a
}

// backend is a device whose work is done in our process, behind fd. It has a port of its own, so that it can be unplugged.
func backend(name string, slot, fd int, device string) []string {
	return []string{
		"-device", fmt.Sprintf("pcie-root-port,id=%sport,chassis=%d,slot=%d", name, slot, slot),
		"-chardev", fmt.Sprintf("socket,id=%s,fd=%d", name, fd),
		"-device", fmt.Sprintf("%s,id=%sdev,bus=%sport,chardev=%s", device, name, name, name),
	}
}

// network is the card and what its cable leads to: our process, or QEMU's own network for users (guest 10.0.2.15/24, gateway
// 10.0.2.2, name server 10.0.2.3).
func (l launch) network() []string {
	cable, nic := "user,id=net,ipv6=off", "virtio-net-pci,netdev=net,romfile="
	n := l.cfg.Network
	if n.Frames != nil {
		cable = fmt.Sprintf("stream,id=net,server=off,addr.type=fd,addr.str=%d", l.cable)
		if n.MTU > 1500 {
			nic += ",host_mtu=" + strconv.Itoa(n.MTU)
		}
	}
	if n.MAC != "" {
		nic += ",mac=" + n.MAC
	}
	return []string{"-netdev", cable, "-device", nic}
}

// quote makes s one value in QEMU's key=value lists, where a comma ends a value and two commas are one.
func quote(s string) string { return strings.ReplaceAll(s, ",", ",,") }
