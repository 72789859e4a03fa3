//go:build linux

// Package share brings the host's directories into the guest: it mounts the one file-system device that the host serves
// (host/share, through the hypervisor's virtio-fs), and shows each share at the path that it has on the host. It is also the
// hand by which the host repeats its own changes in the guest (guest/api's replay.go), so that watchers here hear of them.
// guest/agent says which shares there are to be, and hands it the streams; guest/boot makes a root in which any path can be.
package share

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// deviceTime is how long the device may take to appear once it is wanted.
const deviceTime = 15 * time.Second

// Shares are the host's directories in this guest.
type Shares struct {
	log     *slog.Logger
	devices func() <-chan struct{}
	mount   func(dir string) error // mounts the device
	root    string                 // what the shares' paths begin at
	dir     string                 // where the device is mounted

	mounted chan struct{} // closed when it is

	mu   sync.Mutex      // held while shares change
	have map[string]bind // by path
	made map[string]bool // directories made to mount on
}

// bind is a share that was put at its path.
type bind struct {
	share api.Share
	mount uint64 // the mount's id (STATX_MNT_ID)
}

// New returns the shares of a guest that has none yet. devices returns a channel that is closed at the next change of the
// kernel's devices (boot.Uevents.Changed).
func New(log *slog.Logger, devices func() <-chan struct{}) *Shares {
	return &Shares{
		log: log, devices: devices, mount: mountDevice, root: "/", dir: api.ShareDir,
		mounted: make(chan struct{}), have: map[string]bind{}, made: map[string]bool{},
	}
}

// mountDevice mounts what the host serves. Set-user-id programs and device nodes of the host are none here: the host keeps
// none for the guest, and whoever could plant one would be root. Access times are not kept by FUSE in any case.
func mountDevice(dir string) error {
	return unix.Mount(api.ShareTag, dir, "virtiofs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, "")
}

// Mount mounts the device, once; it waits for one that has yet to appear. Apply does it by itself: a boot calls it early, since
// it can run beside all else that comes after the late mounts.
func (s *Shares) Mount(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.needDevice(ctx)
}

func (s *Shares) needDevice(ctx context.Context) error {
	select {
	case <-s.mounted:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("mount shared directories: %w", err)
	}
	for {
		changed := s.devices()
		err := s.mount(s.dir)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINVAL) { // that is a tag that no device has, or none yet
			return fmt.Errorf("mount shared directories: %w", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("mount shared directories: no device has the tag %s: %w", api.ShareTag, context.Cause(ctx))
		}
	}
	// Else what is mounted in a share would appear here too.
	if err := unix.Mount("", s.dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep shared directories apart: %w", err)
	}
	if err := readAhead(s.dir); err != nil {
		s.log.Warn("big files of the host are read in small pieces", "err", err)
	}
	close(s.mounted)
	return nil
}

// readAhead has the kernel ask for as much at a time, when a file is read from its beginning to its end, as one request can
// carry. It begins with an eighth of that; a server can only make it less (Linux, fs/fuse/inode.c, process_init_reply).
func readAhead(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	file := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	return os.WriteFile(file, []byte("1024"), 0)
}

// Apply makes the guest's shares those of want: it removes, puts up and changes what differs, and leaves alone what does not.
// It can be called at any time, and again; containers keep what they have mounted. A share that cannot be had is told in the
// error, by its path, and all others are there all the same; the next Apply tries it again.
func (s *Shares) Apply(ctx context.Context, want []api.Share) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted, errs := checked(want)
	if len(wanted) > 0 {
		if err := s.needDevice(ctx); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	keep := s.standing(wanted)
	for _, p := range slices.Backward(slices.Sorted(maps.Keys(s.have))) { // what is below goes first
		if keep[p] {
			continue
		}
		if err := s.detach(p, s.have[p].mount); err != nil {
			errs = append(errs, fmt.Errorf("remove share %s: %w", p, err))
		}
		delete(s.have, p)
	}
	for _, p := range slices.Sorted(maps.Keys(wanted)) { // what is above comes first
		if keep[p] {
			continue
		}
		id, err := s.attach(wanted[p])
		if err != nil {
			errs = append(errs, fmt.Errorf("share %s: %w", p, err))
			continue
		}
		s.have[p] = bind{wanted[p], id}
	}
	return errors.Join(errs...)
}

// checked returns the shares that a guest can have, by path, and says what is wrong with the others.
func checked(want []api.Share) (map[string]api.Share, []error) {
	shares := map[string]api.Share{}
	var errs []error
	for _, w := range want {
		if err := w.Check(); err != nil {
			errs = append(errs, err)
		} else if _, twice := shares[w.Path]; twice {
			errs = append(errs, fmt.Errorf("share %s is there twice", w.Path))
		} else {
			shares[w.Path] = w
		}
	}
	return shares, errs
}

// standing returns the paths whose shares are as they are wanted, and can stay: nothing above them comes or goes, which would
// cover them or take them along.
func (s *Shares) standing(wanted map[string]api.Share) map[string]bool {
	keep := map[string]bool{}
	var changed []string
	for p, b := range s.have {
		if w, ok := wanted[p]; ok && w == b.share && s.stands(p, b.mount) {
			keep[p] = true
		} else {
			changed = append(changed, p+"/")
		}
	}
	for p := range wanted {
		if !keep[p] {
			changed = append(changed, p+"/")
		}
	}
	maps.DeleteFunc(keep, func(p string, _ bool) bool {
		return slices.ContainsFunc(changed, func(above string) bool { return strings.HasPrefix(p, above) })
	})
	return keep
}

// Serve serves one stream of api.PortReplay until it or ctx ends, and closes it. It waits for the device.
func (s *Shares) Serve(ctx context.Context, conn net.Conn) {
	select {
	case <-s.mounted:
	case <-ctx.Done():
		conn.Close()
		return
	}
	if err := replay(ctx, conn, s.dir); err != nil {
		s.log.Warn("a stream of file events broke", "err", err)
	}
}
