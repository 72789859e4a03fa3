//go:build linux

package boot

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const diskSize = 256 << 20

// disk makes a sparse file, and lets change write to it.
func disk(t testing.TB, change func(f *os.File)) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(f)
	}
	return f
}

func put(t testing.TB, at int64, b ...byte) func(*os.File) {
	return func(f *os.File) {
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
}

func superblock(change func(b []byte)) []byte {
	b := make([]byte, superblockSize)
	le := binary.LittleEndian
	le.PutUint32(b[0x4:], diskSize/4096)
	le.PutUint32(b[0x18:], 2)
	le.PutUint16(b[0x38:], ext4Magic)
	le.PutUint16(b[0x3A:], 1)
	copy(b[0x78:], "coracle-data")
	if change != nil {
		change(b)
	}
	return b
}

func TestInspect(t *testing.T) {
	le := binary.LittleEndian
	mark := put(t, diskSize-markSize, formatMark...)
	fs := func(change func(b []byte)) func(*os.File) { return put(t, superblockAt, superblock(change)...) }
	mounted := fs(func(b []byte) { le.PutUint32(b[0x2C:], 1) })
	both := func(a, b func(*os.File)) func(*os.File) { return func(f *os.File) { a(f); b(f) } }
	for name, c := range map[string]struct {
		change func(*os.File)
		want   Content
		errs   bool
	}{
		"zero":                                  {nil, Blank, false},
		"ext4":                                  {fs(nil), Ext4, false},
		"partition table":                       {put(t, 510, 0x55, 0xAA), Foreign, false},
		"something at the end of the first MiB": {put(t, 1<<20-1, 1), Foreign, false},
		"format begun":                          {mark, Unfinished, false},
		"format half done":                      {both(mark, put(t, 5000, 1)), Unfinished, false},
		"format done but for the mark":          {both(mark, fs(nil)), Unfinished, false},
		"a file's content looks like a mark":    {both(mark, mounted), Ext4, false},
		"ext4 without its beginning":            {put(t, backupAt, superblock(nil)...), Foreign, false},
		"ext4 with senseless numbers":           {fs(func(b []byte) { le.PutUint32(b[0x18:], 60) }), Ext4, true},
		"ext4 of no blocks":                     {fs(func(b []byte) { le.PutUint32(b[0x4:], 0) }), Ext4, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := Inspect(disk(t, c.change), diskSize)
			if got != c.want || (err != nil) != c.errs {
				t.Errorf("Inspect() = %v, %v: want %v", got, err, c.want)
			}
		})
	}
	if _, _, err := Inspect(disk(t, nil), 4096); err == nil {
		t.Error("a disk of 4 KiB was inspected")
	}
}

func TestParseSuperblock(t *testing.T) {
	le := binary.LittleEndian
	s, ok, err := ParseSuperblock(superblock(func(b []byte) {
		le.PutUint16(b[0x3A:], 3)
		le.PutUint32(b[0x60:], 0x80)
		le.PutUint32(b[0x150:], 1)
		le.PutUint16(b[0x34:], 1)
	}))
	if !ok || err != nil || s.Blocks != 1<<32+diskSize/4096 || s.BlockSize != 4096 || !s.Errors || !s.Mounted || s.Label != "coracle-data" {
		t.Errorf("ParseSuperblock() = %+v, %v, %v", s, ok, err)
	}
}

func FuzzParseSuperblock(f *testing.F) {
	f.Add(superblock(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok, err := ParseSuperblock(b)
		if ok && err == nil && (s.Size() <= 0 || s.BlockSize < 1024 || s.BlockSize > 64<<10) {
			t.Fatalf("accepted %+v of %d bytes", s, s.Size())
		}
	})
}

// TestFormat runs the machine's own mke2fs, as the guest runs the image's.
func TestFormat(t *testing.T) {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		if mke2fs = "/usr/sbin/mke2fs"; !exists(mke2fs) {
			t.Skip("install e2fsprogs to run this test")
		}
	}
	if out, err := exec.Command(mke2fs, "-V").CombinedOutput(); err != nil || !strings.Contains(string(out), "1.4") {
		t.Skipf("mke2fs is not usable: %s", out)
	}
	var during Content
	f := disk(t, nil)
	run := func(ctx context.Context, _ []int, path string, args ...string) error {
		during, _, _ = Inspect(f, diskSize)
		return exec.CommandContext(ctx, mke2fs, args...).Run()
	}
	if err := format(t.Context(), run, f, f.Name(), diskSize, false); err != nil {
		t.Fatal(err)
	}
	content, sb, err := Inspect(f, diskSize)
	if err != nil || content != Ext4 || sb.Size() != diskSize || sb.Errors || sb.Mounted || sb.Label != "coracle-data" {
		t.Errorf("after format: %v, %+v, %v", content, sb, err)
	}
	if during != Unfinished {
		t.Errorf("during format the disk is %v: want %v, so that the next boot formats again", during, Unfinished)
	}

	put(t, 0, make([]byte, blankSize)...)(f)
	if content, _, err := Inspect(f, diskSize); err != nil || content != Foreign {
		t.Errorf("a file system that lost its beginning is %v, %v: want %v, so that it is not formatted", content, err, Foreign)
	}

	failing := func(context.Context, []int, string, ...string) error { return errors.New("no") }
	f = disk(t, nil)
	if err := format(t.Context(), failing, f, f.Name(), diskSize, true); err == nil {
		t.Error("format succeeded without mke2fs")
	}
	if content, _, _ := Inspect(f, diskSize); content != Unfinished {
		t.Errorf("after a failed format the disk is %v: want %v", content, Unfinished)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestDataRefuses(t *testing.T) {
	none := func(context.Context, []int, string, ...string) error {
		t.Error("a program was run")
		return nil
	}
	for name, c := range map[string]struct {
		change func(*os.File)
		want   string
	}{
		"foreign":   {put(t, 510, 0x55, 0xAA), "left as it is"},
		"cut short": {put(t, superblockAt, superblock(func(b []byte) { b[0x7] = 1 })...), "cut short"},
		"senseless": {put(t, superblockAt, superblock(func(b []byte) { b[0x18] = 60 })...), "block size"},
	} {
		err := Data(t.Context(), slog.New(slog.DiscardHandler), none, disk(t, c.change).Name())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Data() = %v: want an error with %q", name, err, c.want)
		}
	}
}
