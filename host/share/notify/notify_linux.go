package notify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// mask is what is asked for of each directory (man 7 inotify). What happens to a file that has no name any more is nobody's
// business but its holder's.
const mask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_DELETE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// Watcher is one inotify instance. Its methods may be called from several goroutines.
type Watcher struct {
	file   *os.File
	events chan []Event
	quit   chan struct{}
	done   chan struct{}

	mu     sync.Mutex // held around a system call and what it means for refs
	fd     int        // file's, for the calls that os.File does not know
	closed bool
	refs   map[ID]int // how often each directory was added
}

// New returns a Watcher of no directory. The caller closes it.
func New() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK) // non-blocking: Close then ends a waiting read
	if err != nil {
		return nil, fmt.Errorf("watch directories: %w", err)
	}
	w := &Watcher{
		file: os.NewFile(uintptr(fd), "inotify"), fd: fd, refs: map[ID]int{},
		events: make(chan []Event), quit: make(chan struct{}), done: make(chan struct{}),
	}
	go w.run()
	return w, nil
}

// Add watches the directory that the descriptor fd is open on, O_PATH being enough: no name is looked up, so that nobody can
// turn the watch elsewhere. fd can be closed afterwards. What happens in the directory once Add has returned is told. A
// directory that is watched already, by whatever name, has its ID again, and as many Removes end it as there were Adds.
// The error is ErrFull where the system has no room.
func (w *Watcher) Add(fd int) (ID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, ErrClosed
	}
	wd, err := unix.InotifyAddWatch(w.fd, fmt.Sprintf("/proc/self/fd/%d", fd), mask)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
		return 0, fmt.Errorf("watch directory: %w: %w", ErrFull, err)
	} else if err != nil {
		return 0, fmt.Errorf("watch directory: %w", err)
	}
	w.refs[ID(wd)]++
	return ID(wd), nil
}

// Remove takes back one Add. After the last one nothing more is told of the directory, but for a batch that was on its way.
// Removing a directory that is gone does nothing.
func (w *Watcher) Remove(id ID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	if w.refs[id] > 1 {
		w.refs[id]--
		return nil
	}
	if w.refs[id] == 0 {
		return nil
	}
	delete(w.refs, id)
	if _, err := unix.InotifyRmWatch(w.fd, uint32(id)); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: gone meanwhile
		return fmt.Errorf("stop watching directory: %w", err)
	}
	return nil
}

// Events returns the channel on which events come, in the order in which they happened, in batches that are the receiver's
// own. It is closed after Close, or when the system takes the Watcher away. A receiver that is too slow gets an Overflow.
func (w *Watcher) Events() <-chan []Event { return w.events }

// Close ends all watches and waits until nothing of the Watcher runs any more. It may be called again.
func (w *Watcher) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		<-w.done
		return nil
	}
	w.closed = true
	close(w.quit)
	err := w.file.Close()
	w.mu.Unlock()
	<-w.done
	return err
}

func (w *Watcher) run() {
	defer close(w.done)
	defer close(w.events)
	for buf := make([]byte, 64<<10); ; {
		n, err := w.file.Read(buf)
		if err != nil {
			return
		}
		batch := w.wanted(parse(buf[:n]))
		if len(batch) == 0 {
			continue
		}
		select {
		case w.events <- batch:
		case <-w.quit:
			return
		}
	}
}

// wanted leaves out the events of directories that are watched no more. An Add that has its ID from the kernel holds the lock
// until it is known here, so that its first event is not lost.
func (w *Watcher) wanted(events []Event) []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted := events[:0]
	for _, e := range events {
		if e.Kind != Overflow && w.refs[e.ID] == 0 {
			continue
		}
		if e.Kind == Gone {
			delete(w.refs, e.ID)
		}
		wanted = append(wanted, e)
	}
	return wanted
}

// kinds says what the bits of an event mean. Of a directory's own end only IN_IGNORED counts, which comes last.
var kinds = []struct {
	bit  uint32
	kind Kind
}{
	{unix.IN_Q_OVERFLOW, Overflow}, {unix.IN_IGNORED, Gone}, {unix.IN_CREATE, Created}, {unix.IN_DELETE, Removed},
	{unix.IN_MOVED_FROM, MovedFrom}, {unix.IN_MOVED_TO, MovedTo}, {unix.IN_MODIFY, Modified}, {unix.IN_ATTRIB, Attributes},
}

// parse decodes what one read of an inotify descriptor gave (man 7 inotify, "Reading events"). A record that is cut off ends
// it.
func parse(buf []byte) []Event {
	var events []Event
	for len(buf) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(buf))
		bits := binary.NativeEndian.Uint32(buf[4:])
		cookie := binary.NativeEndian.Uint32(buf[8:])
		length := uint64(binary.NativeEndian.Uint32(buf[12:]))
		buf = buf[unix.SizeofInotifyEvent:]
		if length > uint64(len(buf)) {
			break
		}
		name, _, _ := bytes.Cut(buf[:length], []byte{0}) // filled up with zeros
		buf = buf[length:]
		for _, k := range kinds {
			if bits&k.bit == 0 {
				continue
			}
			e := Event{ID: ID(wd), Name: string(name), Kind: k.kind, Cookie: cookie, IsDir: bits&unix.IN_ISDIR != 0}
			if e.Kind == Overflow {
				e.ID = 0
			}
			events = append(events, e)
			break
		}
	}
	return events
}
