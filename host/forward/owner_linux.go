package forward

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// owner names the program that has the socket k, or one that excludes it: "nginx (process 4242)". It is empty where nothing
// was found before ctx ended.
func owner(ctx context.Context, k key) string {
	for _, suffix := range []string{"", "6"} {
		f, err := os.Open("/proc/net/" + k.protocol + suffix)
		if err != nil {
			continue
		}
		inode, uid := find(bufio.NewScanner(f), k)
		f.Close()
		if inode == "" {
			continue
		}
		if who := holder(ctx, inode); who != "" {
			return who
		}
		name := uid
		if u, err := user.LookupId(uid); err == nil {
			name = u.Username
		}
		return "a program of user " + name
	}
	return ""
}

// find looks in a table of sockets (man 5 proc_pid_net) for one that listens where k would.
func find(lines *bufio.Scanner, k key) (inode, uid string) {
	state := "0A" // TCP_LISTEN
	if k.protocol == "udp" {
		state = "07"
	}
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != state {
			continue
		}
		at, ok := parseSocket(f[1])
		// A socket of :: may also hold 0.0.0.0; the table does not say.
		if ok && at.Port() == k.at.Port() && (overlap(at, k.at) || at.Addr() == netip.IPv6Unspecified()) {
			return f[9], f[7]
		}
	}
	return "", ""
}

// parseSocket reads "0100007F:1F90": words of 32 bits in the machine's order, and the port.
func parseSocket(s string) (netip.AddrPort, bool) {
	addr, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// holder finds a process that has the socket open, among those that this user may look into.
func holder(ctx context.Context, inode string) string {
	want := "socket:[" + inode + "]"
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		if ctx.Err() != nil {
			return ""
		}
		fds, err := os.ReadDir(proc + "/fd")
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if link, err := os.Readlink(proc + "/fd/" + fd.Name()); err != nil || link != want {
				continue
			}
			comm, err := os.ReadFile(proc + "/comm")
			if err != nil {
				continue
			}
			return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(comm)), filepath.Base(proc))
		}
	}
	return ""
}
