package dockerproxy

import (
	"path"
	"strings"
)

// EngineSocket is where dockerd's socket is in the machine.
const EngineSocket = "/run/docker.sock"

// place is a path that means the machine's own, whatever the host has there.
type place struct {
	path  string
	below bool // and what is below it
	why   string
}

// places are what programs mount that look after the node they run on: such a program means the engine's node, which is the
// machine. Nothing else is taken for the machine's: an empty directory there in place of a user's files helps nobody.
var places = []place{
	{"/", false, "node-exporter, cAdvisor and Portainer's agent look at the whole node"},
	{"/proc", true, "the engine's processes: node-exporter, Datadog"},
	{"/sys", true, "the engine's control groups and devices: cAdvisor, node-exporter"},
	{"/dev", true, "the engine's devices: kind mounts /dev/mapper, cAdvisor /dev/disk"},
	{"/boot", true, "the configuration of the engine's kernel: kind, Falco"},
	{"/lib/modules", true, "the modules of the engine's kernel: kind, k3s, Falco"},
	{"/usr/lib/modules", true, "the same"},
	{"/usr/src", true, "the headers of the engine's kernel: Falco, bcc"},
	{"/run", false, "the sockets of the engine's node: cAdvisor, Netdata"},
	{"/run/docker", true, "the engine's state: its network namespaces, plugins' sockets"},
	{"/run/containerd", true, "containerd's socket: cAdvisor, Falco"},
	{"/run/udev", true, "what is known of the engine's disks: node-exporter"},
	{"/run/host-services", true, "what the host offers its containers: the ssh agent"},
	{"/var/lib/docker", true, "the engine's containers and volumes: cAdvisor, Filebeat, Portainer's agent"},
	{"/var/lib/containerd", true, "the same of containerd"},
	{"/etc/localtime", false, "the engine's time zone: half of all compose files"},
	{"/etc/os-release", false, "the engine's system: Datadog, Netdata"},
	{"/etc/machine-id", false, "the engine's node: Datadog, Promtail"},
}

// inMachine is whether p, which is clean, is the machine's own.
func inMachine(p string) bool {
	p = withoutVar(p)
	for _, place := range places {
		if p == place.path || place.below && below(p, place.path) {
			return true
		}
	}
	return false
}

// withoutVar is p by the name that its directory has in the machine, where /var/run is a link to /run.
func withoutVar(p string) string {
	if p == "/var/run" || below(p, "/var/run") {
		return strings.TrimPrefix(p, "/var")
	}
	return p
}

// systems are directories that every system has for itself. Shared as a whole they would hide the machine's own.
var systems = []string{"/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin",
	"/sys", "/usr", "/var", "/var/lib", "/var/run"}

// below is whether p is dir or below it; both are clean.
func below(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, dir) && (dir == "/" || p[len(dir)] == '/')
}

// under is what p, which is below dir, becomes below another one.
func under(to, p, dir string) string { return path.Join(to, strings.TrimPrefix(p, dir)) }
