package share

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

func reopened(t *testing.T, dir string) *owners {
	t.Helper()
	o, err := openOwners(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.close() })
	return o
}

// TestOwnersDamage: what is damaged costs itself alone.
func TestOwnersDamage(t *testing.T) {
	keys := []ownerKey{{ino: 1, birthSec: 1}, {ino: 2, birthSec: 1}, {ino: 3, birthSec: 1}}
	rec := owner{set: ownsUID | ownsMode, uid: 999, mode: 0o4755, base: 0o755}
	tests := []struct {
		name   string
		damage func(b []byte) []byte
		left   []bool
	}{
		{"none", func(b []byte) []byte { return b }, []bool{true, true, true}},
		{"cut short", func(b []byte) []byte { return b[:len(b)-7] }, []bool{true, true, false}},
		{"a bit in the middle", func(b []byte) []byte { b[len(ownersMagic)+recordSize+3] ^= 4; return b }, []bool{true, false, true}},
		{"another file", func(b []byte) []byte { return append([]byte("?"), b...) }, []bool{false, false, false}},
		{"empty", func([]byte) []byte { return nil }, []bool{false, false, false}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			o := reopened(t, dir)
			for _, k := range keys {
				o.put(k, rec)
			}
			o.close()
			path := filepath.Join(dir, ownersName)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, test.damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			o = reopened(t, dir)
			for i, k := range keys {
				if got := o.get(k); (got == rec) != test.left[i] || !test.left[i] && got != (owner{}) {
					t.Errorf("record %d is %+v", i, got)
				}
			}
			o.put(keys[0], owner{})
			o.put(keys[2], rec)
			o.close()
			o = reopened(t, dir)
			if o.get(keys[0]) != (owner{}) || o.get(keys[2]) != rec {
				t.Error("what is written after the damage is not there")
			}
		})
	}
}

// TestOwnersGrowth: what is outdated does not stay on the disk, and a file without a time of birth does not come to it.
func TestOwnersGrowth(t *testing.T) {
	dir := t.TempDir()
	o := reopened(t, dir)
	for i := range uint32(10_000) {
		o.put(ownerKey{ino: 1, birthSec: 1}, owner{set: ownsUID, uid: i})
	}
	o.put(ownerKey{ino: 2}, owner{set: ownsUID, uid: 5})
	if o.get(ownerKey{ino: 2}).uid != 5 {
		t.Error("a file without a time of birth is not remembered at all")
	}
	o.close()
	o = reopened(t, dir)
	info, err := os.Stat(filepath.Join(dir, ownersName))
	if err != nil || info.Size() != int64(len(ownersMagic)+recordSize) {
		t.Errorf("%v, %v", info, err)
	}
	if o.get(ownerKey{ino: 1, birthSec: 1}).uid != 9999 || o.get(ownerKey{ino: 2}) != (owner{}) {
		t.Error("the wrong records are left")
	}
}
