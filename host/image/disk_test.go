package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/image"
)

func TestEnsureDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data.img")
	for _, step := range []struct {
		name       string
		size, want int64
		code       api.Code
	}{
		{"made", 1 << 30, 1 << 30, ""},
		{"kept", 1 << 30, 1 << 30, ""},
		{"grown", 2 << 30, 2 << 30, ""},
		{"not shrunk", 1 << 30, 2 << 30, api.CodeConfig},
	} {
		err := image.EnsureDisk(path, step.size)
		if (err != nil || step.code != "") && api.CodeOf(err) != step.code {
			t.Errorf("%s: error %v, want code %q", step.name, err, step.code)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != step.want || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", step.name, st, err)
		}
	}
	if used := image.DiskUsed(path); used > 1<<20 {
		t.Errorf("a new disk takes %d bytes: it is not sparse", used)
	}
	write(t, path+"2", "some data")
	if err := image.EnsureDisk(path+"2", 1<<20); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path+"2"); !strings.HasPrefix(got, "some data\x00") || len(got) != 1<<20 {
		t.Errorf("growing changed the disk")
	}
}

func TestOddDisk(t *testing.T) {
	for name, odd := range map[string]func(path string) error{
		"qcow2": func(path string) error { return os.WriteFile(path, []byte("QFI\xfb\x00\x00\x00\x03"), 0o600) },
		"link": func(path string) error {
			return errors.Join(os.WriteFile(path+"x", nil, 0o600), os.Symlink(path+"x", path))
		},
		"dangling":  func(path string) error { return os.Symlink(path+"x", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "data.img")
			if err := odd(path); err != nil {
				t.Fatal(err)
			}
			if err := image.EnsureDisk(path, 1<<20); api.CodeOf(err) != api.CodeDataDisk {
				t.Errorf("error %v: want code %s", err, api.CodeDataDisk)
			}
			if st, err := os.Stat(path + "x"); err == nil && st.Size() != 0 {
				t.Error("wrote through a link")
			}
		})
	}
}

var boot = guestapi.Boot{Version: 1, Secret: bytes.Repeat([]byte{7}, guestapi.SecretLen), Spec: guestapi.Spec{Hostname: "coracle"}}

// TestInitrd reads back what WriteInitrd appends, for every length that the image's own archive may have.
func TestInitrd(t *testing.T) {
	dir := t.TempDir()
	own, out := filepath.Join(dir, "own"), filepath.Join(dir, "out")
	for n := range 8 {
		write(t, own, strings.Repeat("z", n))
		for range 2 { // an old one is in the way
			if err := image.WriteInitrd(out, own, boot); err != nil {
				t.Fatal(err)
			}
		}
		data := read(t, out)
		if !strings.HasPrefix(data, strings.Repeat("z", n)) {
			t.Fatal("the image's own archive is not there")
		}
		at := (n + 3) / 4 * 4
		if strings.Trim(data[n:at], "\x00") != "" {
			t.Fatalf("after %d bytes come %q", n, data[n:at])
		}
		files, err := parseNewc(data[at:])
		if err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		var got guestapi.Boot
		if err := json.Unmarshal([]byte(files["coracle/boot.json"]), &got); err != nil {
			t.Fatalf("%v in %q", err, files)
		}
		if diff := cmp.Diff(boot, got); diff != "" {
			t.Error(diff)
		}
		if st, err := os.Stat(out); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("the secret can be read by others: %v %v", st.Mode(), err)
		}
	}
	if err := image.WriteInitrd(out, filepath.Join(dir, "gone"), boot); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v without an image", err)
	}
}

// parseNewc reads an archive as the kernel does, strict about alignment.
func parseNewc(s string) (map[string]string, error) {
	files := map[string]string{}
	for at := 0; ; {
		if at%4 != 0 || len(s) < at+110 || s[at:at+6] != "070701" {
			return nil, fmt.Errorf("no header at %d", at)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(s[at+6+8*i:at+14+8*i], 16, 32)
			if err != nil {
				n = 1 << 30
			}
			return int(n)
		}
		size, nameLen := field(6), field(11)
		if nameLen > 1000 || at+110+nameLen > len(s) {
			return nil, io.ErrUnexpectedEOF
		}
		name := s[at+110 : at+110+nameLen-1]
		body := (at + 110 + nameLen + 3) / 4 * 4
		if body+size > len(s) {
			return nil, io.ErrUnexpectedEOF
		}
		if name == "TRAILER!!!" {
			return files, nil
		}
		files[name] = s[body : body+size]
		at = (body + size + 3) / 4 * 4
	}
}

// TestInitrdCpio asks another program.
func TestInitrdCpio(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed: apt-get install cpio")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "own"), "")
	if err := image.WriteInitrd(filepath.Join(dir, "out"), filepath.Join(dir, "own"), boot); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(cpio, "-itv")
	cmd.Stdin = strings.NewReader(read(t, filepath.Join(dir, "out")))
	list, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, list)
	}
	for _, want := range []string{"drwx------", "-rw-------", "coracle/boot.json"} {
		if !strings.Contains(string(list), want) {
			t.Errorf("%q is not in %s", want, list)
		}
	}
}

func TestFree(t *testing.T) {
	free, needed, err := image.Free(t.TempDir())
	if err != nil || free <= 0 || needed <= 0 {
		t.Errorf("free %d, needed %d, %v", free, needed, err)
	}
	if _, _, err := image.Free(filepath.Join(t.TempDir(), "gone")); err == nil {
		t.Error("measured a directory that is not there")
	}
}
