//go:build linux

package e2e

import (
	"fmt"
	"testing"

	guestapi "github.com/coracle-engine/coracle/guest/api"
)

// strangers shows that a container, even one that may do anything, is nobody to the agent and to the host: CVE-2026-53657 and
// CVE-2026-112917 elsewhere. CID 1 is the guest itself by loopback, 3 by its own address, 2 the host.
func strangers(t *testing.T, u *user) {
	u.fails(t, 1, []string{"toolbox: open vsock socket: operation not permitted"}, "docker", "run", "--rm", "toolbox", "vsock", "2", fmt.Sprint(guestapi.PortKnock))
	for _, cid := range []int{1, guestapi.GuestCID, guestapi.HostCID} {
		for _, port := range []int{guestapi.PortAgent, guestapi.PortDocker, guestapi.PortShell} {
			refused := "toolbox: connect: "
			if cid == guestapi.HostCID && port == guestapi.PortSSH { // the host listens there, for those who know the secret
				refused = "toolbox: read: "
			}
			u.fails(t, 1, []string{refused}, "docker", "run", "--rm", "--privileged", "--network", "host", "toolbox", "vsock", fmt.Sprint(cid), fmt.Sprint(port))
		}
	}
	u.fails(t, 1, []string{"no such file or directory"}, "docker", "run", "--rm", "--privileged", "--pid", "host", "toolbox", "cat", "/proc/1/root"+guestapi.BootPath)
}
