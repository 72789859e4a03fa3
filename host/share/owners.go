package share

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
)

// The database of owners holds what containers think of files: owner and mode, where they differ from what the host's file
// shows by itself. It is a log of records of one length, each with a checksum, so that a damaged one costs itself alone; the
// last one of a file counts. It lives in memory, and the log is written anew when most of it is outdated.

// ownerKey names a file for longer than its path: an inode number is used again, but not at the same time of birth.
type ownerKey struct {
	ino       uint64
	birthSec  int64
	birthNsec uint32
}

// owner is what a container made of a file. A zero owner says that there is nothing.
type owner struct {
	set      uint8 // which of the following are meant
	uid, gid uint32
	mode     uint16 // permission bits as the guest sees them
	base     uint16 // the host's when mode was set: when they changed since, the host has the last word
}

// Bits of owner.set.
const (
	ownsUID = 1 << iota
	ownsGID
	ownsMode
)

const (
	ownersName  = "owners.log"
	ownersMagic = "CORAOWN1"
	recordSize  = 40
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeOwner(k ownerKey, o owner) []byte {
	b := make([]byte, 0, recordSize)
	b = binary.LittleEndian.AppendUint64(b, k.ino)
	b = binary.LittleEndian.AppendUint64(b, uint64(k.birthSec))
	b = binary.LittleEndian.AppendUint32(b, k.birthNsec)
	b = binary.LittleEndian.AppendUint32(b, o.uid)
	b = binary.LittleEndian.AppendUint32(b, o.gid)
	b = binary.LittleEndian.AppendUint16(b, o.mode)
	b = binary.LittleEndian.AppendUint16(b, o.base)
	b = append(b, o.set, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeOwner is the reverse; false for a record that is damaged.
func decodeOwner(b []byte) (ownerKey, owner, bool) {
	if len(b) != recordSize || crc32.Checksum(b[:36], castagnoli) != binary.LittleEndian.Uint32(b[36:]) {
		return ownerKey{}, owner{}, false
	}
	k := ownerKey{binary.LittleEndian.Uint64(b), int64(binary.LittleEndian.Uint64(b[8:])), binary.LittleEndian.Uint32(b[16:])}
	return k, owner{
		uid: binary.LittleEndian.Uint32(b[20:]), gid: binary.LittleEndian.Uint32(b[24:]),
		mode: binary.LittleEndian.Uint16(b[28:]) & 0o7777, base: binary.LittleEndian.Uint16(b[30:]), set: b[32],
	}, true
}

type owners struct {
	log  *slog.Logger
	path string

	mu      sync.RWMutex
	file    *os.File
	records map[ownerKey]owner
	lines   int  // records in the log
	broken  bool // the log could not be written, and this was said
}

// openOwners reads the database in dir, or makes it. The caller closes it.
func openOwners(dir string, log *slog.Logger) (*owners, error) {
	o := &owners{log: log, path: filepath.Join(dir, ownersName), records: map[ownerKey]owner{}}
	file, err := os.OpenFile(o.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database of owners: %w", err)
	}
	o.file = file
	if err := o.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("read database of owners: %w", err), file.Close())
	}
	if o.lines > 4096 && o.lines > 2*len(o.records) {
		if err := o.rewrite(); err != nil {
			log.Warn("cannot make the database of owners smaller", "error", err)
		}
	}
	return o, nil
}

func (o *owners) load() error {
	data, err := io.ReadAll(o.file)
	if err != nil {
		return err
	}
	whole := 0
	if len(data) >= len(ownersMagic) && string(data[:len(ownersMagic)]) == ownersMagic {
		whole = len(ownersMagic)
	} else if len(data) > 0 {
		o.log.Warn("the database of owners is damaged: files look as the host has them", "path", o.path)
	}
	damaged := 0
	for whole > 0 && len(data)-whole >= recordSize {
		k, rec, ok := decodeOwner(data[whole : whole+recordSize])
		whole += recordSize
		o.lines++
		switch {
		case !ok:
			damaged++
		case rec.set == 0:
			delete(o.records, k)
		default:
			o.records[k] = rec
		}
	}
	if damaged > 0 {
		o.log.Warn("records of the database of owners are damaged", "path", o.path, "count", damaged)
	}
	if whole == 0 {
		if _, err := o.file.WriteAt([]byte(ownersMagic), 0); err != nil {
			return err
		}
		whole = len(ownersMagic)
	}
	return o.file.Truncate(int64(whole)) // a record that a crash cut short
}

// rewrite replaces the log by one without what is outdated.
func (o *owners) rewrite() error {
	data := []byte(ownersMagic)
	for k, rec := range o.records {
		data = append(data, encodeOwner(k, rec)...)
	}
	file, err := os.OpenFile(o.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = file.Write(data); err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = os.Rename(o.path+".new", o.path)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	o.lines = len(o.records)
	old := o.file
	o.file = file
	return old.Close()
}

// get returns what is known of a file; the zero owner where it is nothing.
func (o *owners) get(k ownerKey) owner {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.records[k]
}

// put remembers rec, or with a zero one forgets. A file without a time of birth is remembered until the process ends.
func (o *owners) put(k ownerKey, rec owner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.records[k] == rec || o.file == nil {
		return
	}
	if rec.set == 0 {
		delete(o.records, k)
	} else {
		o.records[k] = rec
	}
	if k.birthSec == 0 && k.birthNsec == 0 {
		return
	}
	// At its place and not at the end: what a full disk cut short is written over.
	_, err := o.file.WriteAt(encodeOwner(k, rec), int64(len(ownersMagic)+o.lines*recordSize))
	if err == nil {
		o.lines++
	} else if !o.broken {
		o.broken = true
		o.log.Warn("cannot write the database of owners: changes of owner and mode are lost when the machine stops", "error", err)
	}
}

func (o *owners) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	file := o.file
	o.file = nil
	if file == nil {
		return nil
	}
	return file.Close()
}
