//go:build linux

// Command toolbox is the one program in the test's container images, which are made FROM scratch: each of its verbs does
// one small thing that a story needs. It knows nothing of Coracle.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

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

	"listen":   listen,
	"udp":      udpEcho,
	"who":      who,
	"scan":     scan,
	"resolve":  resolve,
	"ask":      ask,
	"watch":    watch,
	"exercise": exercise,
	"manifest": printManifest,
	"small":    small,
	"plant":    plant,
	"walk":     walk,
	"seq":      sequential,
	"busy":     busy,
	"mount":    mount,
	"files":    specialFiles,
	"escape":   escape,
	"unixget":  unixGet,
	"hear":     hear,
	"agent":    agent,
	"vsocks":   vsocks,
	"now":      func([]string) error { _, err := fmt.Println(time.Now().UnixNano()); return err },
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
	return zerosTo(os.Stdout, n)
}

func zerosTo(to io.Writer, n int64) error {
	buf := make([]byte, 64<<10)
	for n > 0 {
		w, err := to.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(w)
	}
	return nil
}
