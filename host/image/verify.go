package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/images/manifest"
)

const (
	tmpPrefix = ".new-"
	stampName = "verified.json"
	tmpAge    = time.Hour // what is older was left by a process that died

	// unusedAge is how long an image stays that no machine has started from. Where it is wanted again, it is installed again;
	// a machine that has run for longer keeps its open files.
	unusedAge = 7 * 24 * time.Hour
)

// stamp is what a file looked like when its digest was found right. Whatever changes its bytes changes one of these (the
// change time cannot be set), so that a start need not read 160 MB again.
type stamp struct {
	Size    int64
	ModTime int64 // ns
	Change  int64 // ns; 0 where the system has none
	Inode   uint64
}

func stampOf(path string) (stamp, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return stamp{}, err
	}
	if !st.Mode().IsRegular() {
		return stamp{}, fmt.Errorf("%s is not a regular file", path)
	}
	s := stamp{Size: st.Size(), ModTime: st.ModTime().UnixNano()}
	s.Change, s.Inode = changeOf(st)
	return s, nil
}

// installed is whether dir holds image m, whole. Files that were touched since they were verified are verified again.
func installed(dir, digest string, m *manifest.Manifest) bool {
	if _, have, err := manifest.Load(dir); err != nil || have != digest {
		return false
	}
	known := map[string]stamp{}
	if data, err := os.ReadFile(filepath.Join(dir, stampName)); err == nil {
		_ = json.Unmarshal(data, &known) // an unreadable stamp means that we know nothing
	}
	again := false
	for _, f := range m.Files {
		s, err := stampOf(filepath.Join(dir, f.Name))
		if err != nil || s.Size != f.Size {
			return false
		}
		if known[f.Name] == s {
			continue
		}
		if f.Verify(dir) != nil {
			return false
		}
		again = true
	}
	if again {
		_ = os.Chmod(dir, 0o700)
		_ = writeStamps(dir, m) // where it fails, the next start verifies again
		_ = os.Chmod(dir, 0o500)
	}
	return true
}

func writeStamps(dir string, m *manifest.Manifest) error {
	stamps := map[string]stamp{}
	for _, f := range m.Files {
		s, err := stampOf(filepath.Join(dir, f.Name))
		if err != nil {
			return err
		}
		stamps[f.Name] = s
	}
	data, err := json.Marshal(stamps)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, stampName+"~")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, stampName))
}

// copyImage copies what m covers from source to dst, verified on the way, and leaves dst read-only.
func copyImage(dst, source string, m *manifest.Manifest) error {
	for _, f := range m.Files {
		if err := copyFile(dst, source, f); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(filepath.Join(source, manifest.Name))
	if err != nil {
		return corrupt(source, err)
	}
	if err := os.WriteFile(filepath.Join(dst, manifest.Name), data, 0o400); err != nil {
		return diskError("install image", err)
	}
	if err := writeStamps(dst, m); err != nil {
		return diskError("install image", err)
	}
	return os.Chmod(dst, 0o500)
}

func copyFile(dst, source string, f manifest.File) error {
	r, err := os.Open(filepath.Join(source, f.Name))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return corrupt(source, err)
		}
		return fmt.Errorf("read image: %w", err)
	}
	defer r.Close()
	w, err := os.OpenFile(filepath.Join(dst, f.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return fmt.Errorf("install image: %w", err)
	}
	h := sha256.New()
	n, err := io.Copy(w, io.TeeReader(io.LimitReader(r, f.Size+1), h))
	if err := errors.Join(err, w.Close()); err != nil {
		return diskError("install image", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != f.Size || got != f.SHA256 {
		return corrupt(source, fmt.Errorf("%s has %s bytes of digest %s: want %d of %s", f.Name, atMost(n, f.Size), got, f.Size, f.SHA256))
	}
	return nil
}

func atMost(n, size int64) string {
	if n > size {
		return fmt.Sprintf("more than %d", size)
	}
	return fmt.Sprint(n)
}

// diskError tells a full disk from other errors.
func diskError(what string, err error) error {
	if isNoSpace(err) {
		return &api.Error{Code: api.CodeDiskFull, Message: fmt.Sprintf("%s: %v", what, err), Hint: "free some space on the disk, then start again"}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// touch marks an image as used now.
func touch(dir string) {
	now := time.Now()
	_ = os.Chtimes(dir, now, now) // it may not be there
}

// sweep removes what processes that died left behind, and images that nobody uses any more.
func sweep(images string) {
	entries, err := os.ReadDir(images)
	if err != nil {
		return
	}
	for _, e := range entries {
		age := unusedAge
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			age = tmpAge
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > age {
			removeTree(filepath.Join(images, e.Name()))
		}
	}
}

// removeTree removes one of our read-only directories.
func removeTree(dir string) {
	if _, err := os.Lstat(dir); err == nil {
		_ = os.Chmod(dir, 0o700)
		_ = os.RemoveAll(dir)
	}
}
