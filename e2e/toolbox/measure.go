//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// timed prints how long f took per piece, in nanoseconds, as a benchmark reads it.
func timed(name string, n int, f func() error) error {
	began := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err := fmt.Printf("%s %d\n", name, time.Since(began).Nanoseconds()/int64(n))
	return err
}

// steps does one after the other until one fails.
func steps(fs ...func() error) error {
	for _, f := range fs {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// forget has the kernel write and then drop what it has cached of any file system. It takes root outside of containers, or in
// a privileged one.
func forget() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// small makes, looks at, reads and removes n files of 1 KiB. What is warm was looked at or read before; what is not, the
// kernel knew nothing of.
func small(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	dir := filepath.Join(args[0], "small")
	content := make([]byte, 1024)
	each := func(name string, f func(path string) error) func() error {
		return func() error {
			return timed(name, n, func() error {
				for i := range n {
					if err := f(filepath.Join(dir, strconv.Itoa(i))); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	create := func(p string) error { return os.WriteFile(p, content, 0o644) }
	stat := func(p string) error { _, err := os.Lstat(p); return err }
	read := func(p string) error { _, err := os.ReadFile(p); return err }
	return steps(
		func() error { return os.Mkdir(dir, 0o755) }, each("create", create),
		forget, each("stat", stat), each("stat-warm", stat),
		forget, each("read", read), each("read-warm", read),
		each("unlink", os.Remove), func() error { return os.Remove(dir) })
}

// plant makes n small files in directories of 50 each, for walk.
func plant(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for i := range n {
		dir := filepath.Join(args[0], strconv.Itoa(i/50))
		if i%50 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "file-"+strconv.Itoa(i)), []byte("planted\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// walk looks at every entry beneath a directory, twice: first when the kernel knows nothing of it, then when it does. It
// prints nanoseconds per entry.
func walk(args []string) error {
	n := 0
	look := func() error {
		n = 0
		return filepath.WalkDir(args[0], func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			n++
			_, err = d.Info()
			return err
		})
	}
	per := func(name string) func() error {
		return func() error {
			began := time.Now()
			if err := look(); err != nil {
				return err
			}
			_, err := fmt.Printf("%s %d\n", name, time.Since(began).Nanoseconds()/int64(max(n, 1)))
			return err
		}
	}
	return steps(forget, per("walk"), per("walk-warm"), func() error { _, err := fmt.Println("entries", n); return err })
}

// sequential writes so many MiB and through to the disk, reads them, and reads them again from the cache; it prints
// nanoseconds per MiB.
func sequential(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	path := filepath.Join(args[0], "seq")
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	write := func() error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		for range n {
			if _, err := f.Write(block); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		return errors.Join(f.Sync(), f.Close())
	}
	read := func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for range n {
			if _, err := io.ReadFull(f, block); err != nil {
				return err
			}
		}
		return nil
	}
	each := func(name string, f func() error) func() error { return func() error { return timed(name, n, f) } }
	return steps(each("write", write), forget, each("seq-read", read), each("seq-read-warm", read), func() error { return os.Remove(path) })
}

// mount mounts a file system: TYPE SOURCE DIR [OPTIONS].
func mount(args []string) error {
	if err := os.MkdirAll(args[2], 0o755); err != nil {
		return err
	}
	options := ""
	if len(args) > 3 {
		options = args[3]
	}
	return unix.Mount(args[1], args[2], args[0], unix.MS_NOATIME, options)
}

// busy is the other end of a published port that is measured. The first byte of a connection says what follows: after an e
// everything comes back; after an s it is read to its end, and its length answered in decimal; after a z and a number with a
// line end, so many zeros come.
func busy(args []string) error {
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := serveBusy(c.(*net.TCPConn)); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
}

func serveBusy(c *net.TCPConn) error {
	r := bufio.NewReaderSize(c, 64<<10)
	kind, err := r.ReadByte()
	if err != nil {
		return err
	}
	switch kind {
	case 'e':
		_, err = io.Copy(c, r)
	case 's':
		var n int64
		if n, err = io.Copy(io.Discard, r); err == nil {
			_, err = fmt.Fprint(c, n)
		}
	case 'z':
		line, _ := r.ReadString('\n')
		var n int64
		if n, err = strconv.ParseInt(strings.TrimSpace(line), 10, 64); err == nil {
			err = zerosTo(c, n)
		}
	}
	return errors.Join(err, c.CloseWrite())
}
