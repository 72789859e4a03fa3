package diagnose

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/coracle-engine/coracle/host/api"
)

// checkSettings looks at one machine's settings: whether they can be read and followed, and what of this host they name that
// is not there.
func checkSettings(name string, read func(name string) (api.Settings, error)) []api.Check {
	check := "settings of " + name
	s, err := read(name)
	if err != nil {
		return []api.Check{failed(check, err)}
	}
	var checks []api.Check
	warn := func(code api.Code, hint, format string, args ...any) {
		checks = append(checks, api.Check{Name: check, Level: api.CheckWarn, Detail: fmt.Sprintf(format, args...), Hint: hint, Code: code})
	}
	for _, sh := range s.Shares {
		if st, err := os.Stat(sh.Path); err != nil || !st.IsDir() {
			warn(api.CodeShare, "make it, or run `coracle config remove --machine "+name+" shares "+sh.Path+"`", "%s is shared, and no directory that this user can see", sh.Path)
		}
	}
	if !ours(s.Ports.Address) {
		warn(api.CodeConfig, "run `coracle config remove --machine "+name+" ports.address` to publish ports on 127.0.0.1", "published ports open on %s, which is no address of this host now", s.Ports.Address)
	}
	if len(checks) == 0 {
		checks = append(checks, ok(check, "%s, ports on %s", count(len(s.Shares), "share"), s.Ports.Address))
	}
	return checks
}

func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// ours is whether this host can listen on an address. What cannot be found out is taken for well.
func ours(address string) bool {
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.IsUnspecified() || ip.IsLoopback() {
		return true
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(net.IP(ip.WithZone("").AsSlice())) {
			return true
		}
	}
	return false
}

const (
	watchLimit = "/proc/sys/fs/inotify/max_user_watches"
	manyDirs   = 100_000 // a home with a few large projects in it
)

// Watches is how many directories a user's programs can watch at once, 0 where the system has no such limit.
func Watches() int {
	data, err := os.ReadFile(watchLimit)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return n
}

// checkWatches wants enough of them for the directories that containers use.
func checkWatches(limit int) []api.Check {
	const name = "file events"
	switch {
	case limit == 0:
		return nil
	case limit >= manyDirs:
		return []api.Check{ok(name, "%d directories can be watched", limit)}
	}
	return []api.Check{{Name: name, Level: api.CheckWarn,
		Detail: fmt.Sprintf("this user's programs can watch %d directories: of shared directories beyond, containers hear no changes, and look at them more slowly", limit),
		Hint:   "run `sudo sysctl fs.inotify.max_user_watches=1048576`; to keep it, write `fs.inotify.max_user_watches=1048576` to /etc/sysctl.d/60-coracle.conf"}}
}
