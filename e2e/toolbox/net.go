//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

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

// unixGet prints what a path answers on a unix socket.
func unixGet(args []string) error {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", args[0])
	}}
	resp, err := (&http.Client{Transport: t, Timeout: 20 * time.Second}).Get("http://unix" + args[1])
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

// listen is a TCP echo on a port: it says back what it hears, to the end of the stream, and then ends its own side.
func listen(args []string) error {
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
			_, _ = io.Copy(c, c)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
	}
}

// udpEcho answers each datagram on a port with itself, behind the sender's address and a space.
func udpEcho(args []string) error {
	c, err := net.ListenPacket("udp", ":"+args[0])
	if err != nil {
		return err
	}
	fmt.Println("listening")
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo([]byte(from.String()+" "+string(buf[:n])), from); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// who tells each client on a port the address that it comes from.
func who(args []string) error {
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
		fmt.Fprintln(c, c.RemoteAddr())
		c.Close()
	}
}

// scan prints each of an address's ports, 1 to 65535, that answers a connection, and what it says to an HTTP request.
func scan(args []string) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	ports := make(chan int)
	for range 256 {
		wg.Go(func() {
			for port := range ports {
				c, err := net.DialTimeout("tcp", net.JoinHostPort(args[0], strconv.Itoa(port)), 3*time.Second)
				if err != nil {
					continue
				}
				_ = c.SetDeadline(time.Now().Add(2 * time.Second))
				fmt.Fprintf(c, "GET /_ping HTTP/1.0\r\n\r\n")
				line, _ := bufio.NewReader(io.LimitReader(c, 100)).ReadString('\n')
				c.Close()
				mu.Lock()
				fmt.Printf("%d %q\n", port, strings.TrimSpace(line))
				mu.Unlock()
			}
		})
	}
	for port := 1; port <= 65535; port++ {
		ports <- port
	}
	close(ports)
	wg.Wait()
	fmt.Println("scanned")
	return nil
}

func resolve(args []string) error {
	addrs, err := net.LookupHost(args[0])
	if err != nil {
		return err
	}
	_, err = fmt.Println(strings.Join(addrs, " "))
	return err
}

// hear prints what a TCP port says to whoever connects.
func hear(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = io.Copy(os.Stdout, c)
	return err
}

// vsocks asks all of Coracle's vsock ports, of the host and of the guest, and prints those that answer.
func vsocks([]string) error {
	answers := []string{}
	for _, cid := range []string{"1", "2", "3"} {
		for port := 1024; port <= 1028; port++ {
			if cid == "1" && port > 1024 { // nobody refuses there: each takes its time
				break
			}
			if dialVsock([]string{cid, strconv.Itoa(port)}) == nil {
				answers = append(answers, cid+":"+strconv.Itoa(port))
			}
		}
	}
	if len(answers) == 0 {
		answers = append(answers, "none answers")
	}
	_, err := fmt.Println(strings.Join(answers, " "))
	return err
}

// agent asks an ssh agent's socket how many keys it has.
func agent(args []string) error {
	c, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte{0, 0, 0, 1, 11}); err != nil {
		return err
	}
	answer := make([]byte, 9)
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	if answer[4] != 12 {
		return fmt.Errorf("answer of type %d", answer[4])
	}
	_, err = fmt.Println(answer[8], "keys")
	return err
}
