//go:build linux

// Command toolbox is the one program in the test's container images, which are made FROM scratch: each of its verbs does
// one small thing that a story needs. It knows nothing of Coracle.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

var verbs = map[string]func(args []string) error{
	"echo":   func(args []string) error { _, err := fmt.Println(strings.Join(args, " ")); return err },
	"cat":    cat,
	"sha256": digest,
	"exit":   exit,
	"hold":   hold,
	"stop":   onStop,
	"ticks":  ticks,
	"tty":    tty,
	"write":  write,
	"zeros":  zeros,
	"serve":  serve,
	"get":    get,
	"exists": func(args []string) error { _, err := os.Stat(args[0]); return err },
	"env":    func(args []string) error { _, err := fmt.Println(os.Getenv(args[0])); return err },
	"dial":   dial,
	"vsock":  dialVsock,
}

func main() {
	if len(os.Args) < 2 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "toolbox: want a verb")
		os.Exit(2)
	}
	if err := verbs[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "toolbox:", err)
		os.Exit(1)
	}
}

// cat copies a file, or standard input to its end.
func cat(args []string) error {
	in := os.Stdin
	if len(args) > 0 {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	_, err := io.Copy(os.Stdout, in)
	return err
}

// digest reads standard input to its end and prints its SHA-256 and length.
func digest([]string) error {
	h := sha256.New()
	n, err := io.Copy(h, os.Stdin)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%x %d\n", h.Sum(nil), n)
	return err
}

func exit(args []string) error {
	code, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "leaving with", code)
	os.Exit(code)
	return nil
}

// hold waits for SIGTERM, which process 1 of a container must ask for to get.
func hold([]string) error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	fmt.Println("holding")
	<-c
	return nil
}

// onStop waits for SIGTERM and then writes a file, to show that an orderly stop reached it.
func onStop(args []string) error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	fmt.Println("waiting for SIGTERM")
	<-c
	return write([]string{args[0], "stopped in order"})
}

// ticks prints a number every 20 ms, as many as asked.
func ticks(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for i := range n {
		if _, err := fmt.Println("tick", i); err != nil {
			return err
		}
		<-t.C
	}
	return nil
}

func tty([]string) error {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		_, err := fmt.Println("not a terminal")
		return err
	}
	cols, rows, err := term.GetSize(fd)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("terminal of %d rows and %d columns\n", rows, cols)
	return err
}

// write writes a text to a file and through to the disk.
func write(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(args[1:], " "))
	return errors.Join(err, f.Sync(), f.Close())
}

// zeros writes so many zero bytes to standard output.
func zeros(args []string) error {
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for n > 0 {
		w, err := os.Stdout.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(w)
	}
	return nil
}

// serve answers every HTTP request on a port with a text.
func serve(args []string) error {
	return http.ListenAndServe(":"+args[0], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.Join(args[1:], " "))
	}))
}

func get(args []string) error {
	c := http.Client{Timeout: 20 * time.Second}
	resp, err := c.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// dialVsock succeeds where a vsock connection to a CID's port can be made and its listener says something or stays.
func dialVsock(args []string) error {
	cid, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open vsock socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: uint32(cid), Port: uint32(port)}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	// Like a host that knows no secret: ask the engine, and see whether anything comes back.
	if _, err := unix.Write(fd, []byte("GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"+strings.Repeat(" ", 64))); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	buf := make([]byte, 64)
	if n, err := unix.Read(fd, buf); err != nil || n == 0 {
		return fmt.Errorf("read: %d bytes, %v", n, err)
	}
	return nil
}

// dial succeeds where a TCP connection can be made.
func dial(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], 10*time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}
