package vmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm"
)

// Mounter is a System whose machine may have a file-system device.
type Mounter interface {
	// Mount gives what the device with tag leads to, until unmount is called. Several may use it at once.
	Mount(tag string) (files fs.FS, unmount func() error, err error)
}

// Networker is a System whose machine has a network card with a Cable on it.
type Networker interface {
	// Exchange sends a datagram to the EchoPort of CableHost and returns the answer.
	Exchange(datagram []byte) ([]byte, error)
}

// FileCall asks the guest to do something with a file of a file-system device.
type FileCall struct {
	Tag   string `json:"tag"`
	Name  string `json:"name"`
	Hash  bool   `json:"hash"`  // fill in FileAnswer.Sum.SHA256
	Stats int    `json:"stats"` // how often to ask for the open file's attributes
}

// FileAnswer is what the guest has to say of it.
type FileAnswer struct {
	Err  string        `json:"err"`
	Sum  Sum           `json:"sum"`
	Size int64         `json:"size"` // by the file's attributes
	Read time.Duration `json:"read"` // for all of the file
	Stat time.Duration `json:"stat"` // for each of Stats
}

// file serves PortFile.
func (g *guest) file(_ context.Context, c net.Conn) {
	var call FileCall
	if err := json.NewDecoder(c).Decode(&call); err != nil {
		return
	}
	a, err := g.readFile(call)
	if err != nil {
		a.Err = err.Error()
	}
	json.NewEncoder(c).Encode(a)
}

func (g *guest) readFile(call FileCall) (a FileAnswer, err error) {
	m, ok := g.sys.(Mounter)
	if !ok {
		return a, fmt.Errorf("mount %q: %w", call.Tag, errors.ErrUnsupported)
	}
	files, unmount, err := m.Mount(call.Tag)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	f, err := files.Open(call.Name)
	if err != nil {
		return a, err
	}
	defer f.Close()
	begin := time.Now()
	for range call.Stats {
		if _, err := f.Stat(); err != nil {
			return a, err
		}
	}
	a.Stat = time.Since(begin) / time.Duration(max(1, call.Stats))
	info, err := f.Stat()
	if err != nil {
		return a, err
	}
	a.Size = info.Size()
	h := sha256.New()
	var w io.Writer = h
	if !call.Hash {
		w = onlyWriter{io.Discard}
	}
	begin = time.Now()
	a.Sum.Bytes, err = io.CopyBuffer(w, onlyReader{f}, make([]byte, 1<<20))
	a.Read = time.Since(begin)
	a.Sum.SHA256 = h.Sum(nil)
	return a, err
}

// datagram serves PortDatagram.
func (g *guest) datagram(_ context.Context, c net.Conn) {
	n, ok := g.sys.(Networker)
	if !ok {
		return
	}
	sent, err := io.ReadAll(onlyReader{c})
	if err != nil {
		return
	}
	back, err := n.Exchange(sent)
	if err != nil {
		back = []byte(err.Error())
	}
	c.Write(back)
	closeWrite(c)
}

// AskFile has the guest of m do call.
func AskFile(ctx context.Context, m vm.Machine, call FileCall) (FileAnswer, error) {
	c, err := m.Dial(ctx, PortFile)
	if err != nil {
		return FileAnswer{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := json.NewEncoder(c).Encode(call); err != nil {
		return FileAnswer{}, err
	}
	var a FileAnswer
	if err := json.NewDecoder(c).Decode(&a); err != nil {
		return a, err
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

const (
	carryTag = "vmtest"
	large    = 64 << 20 // bytes
)

// carries boots a machine with a file system and a cable.
func (s Subject) carries(t *testing.T) {
	caps, err := s.Driver.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	contents := make([]byte, large)
	(&Pattern{}).Read(contents)
	files, cable := NewFiles(map[string][]byte{"empty": nil, "small": []byte("contents\n"), "large": contents}), &Cable{}
	s = s.with(func(cfg *vm.Config) {
		cfg.Network.Frames, cfg.Network.MTU = cable.Frames, CableMTU
		cfg.FileSystem, cfg.FileSystemTag = files, carryTag
	})
	if !caps.FileSystem {
		_, err := s.Driver.Open(t.Context(), s.Config(t))
		want(t, "open with a file system", err, vm.ErrNotSupported)
		s = s.with(func(cfg *vm.Config) { cfg.FileSystem, cfg.FileSystemTag = nil, "" })
	}
	m, _ := s.boot(t)
	if caps.FileSystem {
		t.Run("files", func(t *testing.T) { readFiles(t, m, files) })
	}
	t.Run("frames", func(t *testing.T) { exchange(t, m, cable) })
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, open := cable.calls.Load(), cable.running.Load(); n != 1 || open != 0 {
		t.Errorf("frames was called %d times and %d calls outlive the machine; want 1 and none", n, open)
	}
	if n := files.serving.Load(); n != 0 || caps.FileSystem && (files.resets.Load() == 0 || files.open != 0) {
		t.Errorf("after the machine's end %d requests are under way, %d files are open, after %d resets", n, files.open, files.resets.Load())
	}
}

// with is s with a change to its configurations.
func (s Subject) with(change func(*vm.Config)) Subject {
	config := s.Config
	s.Config = func(t *testing.T) vm.Config {
		cfg := config(t)
		change(&cfg)
		return cfg
	}
	return s
}

func readFiles(t *testing.T, m vm.Machine, files *Files) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, name := range files.names {
		a, err := AskFile(ctx, m, FileCall{Tag: carryTag, Name: name, Hash: true, Stats: 100})
		if err != nil {
			t.Errorf("guest reads %s: %v", name, err)
			continue
		}
		checkSum(t, bytes.NewReader(encode(t, a.Sum)), files.sum(name))
		if a.Size != a.Sum.Bytes {
			t.Errorf("%s has %d bytes by its attributes", name, a.Size)
		}
		t.Logf("guest read %s, %d bytes, in %v; its attributes take %v", name, a.Sum.Bytes, a.Read, a.Stat)
	}
	if _, err := AskFile(ctx, m, FileCall{Tag: carryTag, Name: "missing"}); err == nil {
		t.Error("guest opens a missing file: no error")
	}
	if _, err := AskFile(ctx, m, FileCall{Tag: "other", Name: "small"}); err == nil {
		t.Error("guest mounts a device by another tag: no error")
	}
	if n := int(files.mounts.Load()); n < len(files.names) {
		t.Errorf("files were mounted %d times, want once for each call", n)
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func exchange(t *testing.T, m vm.Machine, cable *Cable) {
	for _, size := range []int{1, 1000, 60000} {
		sent := make([]byte, size)
		(&Pattern{}).Read(sent)
		c := dial(t, m, PortDatagram)
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := closeWrite(c); err != nil {
			t.Fatal(err)
		}
		back, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(back, sent) {
			t.Errorf("guest sent %d bytes over the cable: %d came back (%.80q), %v", size, len(back), back, err)
		}
	}
	cable.mu.Lock()
	defer cable.mu.Unlock()
	if cable.longest < 60000 {
		t.Errorf("the longest frame has %d bytes: the guest cut a datagram that fits an MTU of %d", cable.longest, CableMTU)
	}
}
