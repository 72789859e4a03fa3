package vmtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// The kinds of FUSE request that Files and its mount know (linux/fuse.h, enum fuse_opcode).
const (
	fuseLookup  = 1
	fuseForget  = 2
	fuseGetattr = 3
	fuseOpen    = 14
	fuseRead    = 15
	fuseRelease = 18
	fuseFlush   = 25
	fuseInit    = 26
	fuseDestroy = 38

	inHeader, outHeader = 40, 16
	enoent, ebadf       = 2, 9
	enosys              = 38
)

// Files is a vm.FileSystem of a few files in memory: as much FUSE as it takes to mount it and to read them. It lets the guest
// cache nothing. Besides it counts, for a test to see what the driver did with it.
type Files struct {
	names    []string
	contents [][]byte

	mounts  atomic.Int32
	resets  atomic.Int32
	serving atomic.Int32
	mu      sync.Mutex
	open    int
}

// NewFiles makes it of contents by name.
func NewFiles(contents map[string][]byte) *Files {
	f := &Files{names: slices.Sorted(maps.Keys(contents))}
	for _, name := range f.names {
		f.contents = append(f.contents, contents[name])
	}
	return f
}

// Reset forgets what is open.
func (f *Files) Reset() {
	f.resets.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = 0
}

// Serve answers one request.
func (f *Files) Serve(in, out [][]byte) int {
	f.serving.Add(1)
	defer f.serving.Add(-1)
	b := in[0]
	op, id, node := binary.NativeEndian.Uint32(b[4:]), b[8:16], binary.NativeEndian.Uint64(b[16:])
	if op == fuseForget || len(out) == 0 {
		return 0
	}
	body, code := f.do(op, node, bytes.Join(in, nil)[inHeader:])
	h := binary.NativeEndian.AppendUint32(nil, uint32(outHeader+len(body)))
	h = binary.NativeEndian.AppendUint32(h, uint32(-code))
	return scatter(out, append(h, id...), body)
}

// scatter lays parts, one behind the other, into out and returns how long they are.
func scatter(out [][]byte, parts ...[]byte) int {
	n := 0
	for _, p := range parts {
		for len(p) > 0 && len(out) > 0 {
			k := copy(out[0], p)
			n, p = n+k, p[k:]
			if out[0] = out[0][k:]; len(out[0]) == 0 {
				out = out[1:]
			}
		}
	}
	return n
}

// do returns the answer's body and its error number.
func (f *Files) do(op uint32, node uint64, body []byte) ([]byte, int32) {
	switch op {
	case fuseInit:
		f.mounts.Add(1)
		return initOut(), 0
	case fuseLookup:
		i, ok := slices.BinarySearch(f.names, string(bytes.TrimRight(body, "\x00")))
		if !ok || node != 1 {
			return nil, enoent
		}
		b := binary.NativeEndian.AppendUint64(nil, uint64(i+2))
		return append(append(b, make([]byte, 32)...), f.attributes(uint64(i+2))...), 0
	case fuseGetattr:
		return append(make([]byte, 16), f.attributes(node)...), 0
	case fuseOpen, fuseRelease:
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.open++; op == fuseRelease {
			f.open -= 2
		}
		return make([]byte, 16), 0
	case fuseRead:
		if len(body) < 20 || node < 2 || node-2 >= uint64(len(f.contents)) {
			return nil, ebadf
		}
		c := f.contents[node-2]
		from := min(binary.NativeEndian.Uint64(body[8:]), uint64(len(c)))
		to := min(from+uint64(binary.NativeEndian.Uint32(body[16:])), uint64(len(c)))
		return c[from:to], 0
	case fuseFlush, fuseDestroy:
		return nil, 0
	}
	return nil, enosys
}

// initOut is struct fuse_init_out of protocol 7.31, with requests of 1 MiB.
func initOut() []byte {
	const asyncRead, bigWrites, parallelDirOps, maxPages = 1 << 0, 1 << 5, 1 << 18, 1 << 22
	var b []byte
	for _, v := range []uint32{7, 31, 1 << 20, asyncRead | bigWrites | parallelDirOps | maxPages, 48<<16 | 64, 1 << 20, 1, 256} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return append(b, make([]byte, 64-len(b))...)
}

// attributes are struct fuse_attr of a node.
func (f *Files) attributes(node uint64) []byte {
	size, mode := 0, uint32(0o40755)
	if i := node - 2; i < uint64(len(f.contents)) {
		size, mode = len(f.contents[i]), 0o100644
	}
	var b []byte
	for _, v := range []uint64{node, uint64(size), uint64(size+511) / 512, 1, 1, 1} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	for _, v := range []uint32{0, 0, 0, mode, 1, 0, 0, 0, 4096, 0} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// sum is what a guest that reads the file name should find.
func (f *Files) sum(name string) Sum {
	i, _ := slices.BinarySearch(f.names, name)
	h := sha256.Sum256(f.contents[i])
	return Sum{int64(len(f.contents[i])), h[:]}
}
