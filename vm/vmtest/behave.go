package vmtest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// The ports of the guest's program. PortReady is the host's: the guest connects to it once, when all its ports answer.
const (
	PortReady  = 2000
	PortEcho   = 2001 // sends back what it receives, half-close included
	PortSink   = 2002 // reads to end-of-file, then answers with a Sum of what it read
	PortSource = 2003 // reads a length (8 bytes, big-endian), sends so many bytes of Pattern and half-closes, then waits for our end
	PortLate   = 2004 // half-closes at once, reads to end-of-file and sends the Sum of it to the host's PortReport
	PortStall  = 2005 // accepts and never reads
	PortCall   = 2006 // reads a Call, dials the host and behaves there as asked; answers "ok" or why it could not
	PortOff    = 2007 // powers the guest off
	PortCrash  = 2008 // brings the guest's kernel down
	PortReport = 2009 // the host's: where PortLate reports
	PortNobody = 2010 // nobody listens here, on either side
	// Those for measurements, whose work costs an emulated guest next to nothing.
	PortCount = 2011 // as PortSink, but answers with the number of bytes alone (8 bytes, big-endian)
	PortZeros = 2012 // as PortSource, but sends zeros
	PortFiles = 2013 // answers with how many files the guest's process has open, this stream included (8 bytes, big-endian)
	// Those for what else a machine carries.
	PortFile     = 2014 // reads a FileCall, does it, and answers with a FileAnswer
	PortDatagram = 2015 // reads to end-of-file, sends that as a datagram to the Cable's host and answers with what came back
)

// chunk is the buffer of one stream that is measured, in bytes.
const chunk = 64 << 10

// System is what Behave needs of the guest it runs in.
type System interface {
	Listen(port uint32) (net.Listener, error)
	Dial(port uint32) (net.Conn, error)
}

// The two ends of Behave that are not an error of its own.
var (
	ErrPowerOff = errors.New("power off was asked")
	ErrCrash    = errors.New("crash was asked")
)

// Sum is what a sink says of what it read.
type Sum struct {
	Bytes  int64  `json:"bytes"`
	SHA256 []byte `json:"sha256"`
}

// Call asks the guest to connect to a port of the host and to behave there as it does on its own port Behave.
type Call struct {
	Port   uint32 `json:"port"`
	Behave uint32 `json:"behave"`
}

type guest struct {
	sys System
	end chan error // ErrPowerOff or ErrCrash
}

// Behave is the guest's program: it serves the ports above until it is asked to end or ctx does. It returns ErrPowerOff or
// ErrCrash for the caller to carry out, nil at the end of ctx, and any other error where it could not listen.
func Behave(ctx context.Context, sys System) error {
	g := &guest{sys: sys, end: make(chan error, 1)}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, port := range []uint32{
		PortEcho, PortSink, PortSource, PortLate, PortStall, PortCall, PortOff, PortCrash, PortCount, PortZeros, PortFiles,
		PortFile, PortDatagram, PortRun,
	} {
		l, err := sys.Listen(port)
		if err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		wg.Go(func() { serve(ctx, l, g.behaviour(port)) })
	}
	if c, err := sys.Dial(PortReady); err == nil { // a host that does not ask for it does not listen
		c.Close()
	}
	select {
	case err := <-g.end:
		return err
	case <-ctx.Done():
		return nil
	}
}

// serve hands l's streams to f, each in a goroutine of its own, until ctx ends; then it closes them and returns when all
// are done.
func serve(ctx context.Context, l net.Listener, f func(context.Context, net.Conn)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			f(ctx, c)
		})
	}
}

func (g *guest) behaviour(port uint32) func(context.Context, net.Conn) {
	return map[uint32]func(context.Context, net.Conn){
		PortEcho:   echo,
		PortSink:   func(_ context.Context, c net.Conn) { json.NewEncoder(c).Encode(sink(c)) },
		PortSource: func(_ context.Context, c net.Conn) { source(c, &Pattern{}) },
		PortLate:   g.late,
		PortStall:  func(ctx context.Context, _ net.Conn) { <-ctx.Done() },
		PortCall:   g.call,
		PortOff:    func(context.Context, net.Conn) { g.finish(ErrPowerOff) },
		PortCrash:  func(context.Context, net.Conn) { g.finish(ErrCrash) },
		PortCount:  func(_ context.Context, c net.Conn) { answer(c, count(c)) },
		PortZeros:  func(_ context.Context, c net.Conn) { source(c, zeros{}) },
		PortFile:   g.file, PortDatagram: g.datagram, PortRun: g.run,
		PortFiles: func(_ context.Context, c net.Conn) { answer(c, files()) },
	}[port]
}

func (g *guest) finish(err error) {
	select {
	case g.end <- err:
	default:
	}
}

func echo(_ context.Context, c net.Conn) {
	if _, err := io.Copy(c, onlyReader{c}); err == nil {
		closeWrite(c)
	}
}

// onlyReader hides that a net.Conn can splice: vsock sockets cannot.
type onlyReader struct{ io.Reader }

func sink(c net.Conn) Sum {
	h := sha256.New()
	n, _ := io.Copy(h, c)
	return Sum{n, h.Sum(nil)}
}

// source sends of contents what it is asked for.
func source(c net.Conn, contents io.Reader) {
	var size [8]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	wanted := io.LimitReader(contents, int64(binary.BigEndian.Uint64(size[:])))
	if _, err := io.CopyBuffer(onlyWriter{c}, wanted, make([]byte, chunk)); err != nil {
		return
	}
	closeWrite(c)
	io.Copy(io.Discard, c)
}

// onlyWriter hides that a net.Conn may bring a buffer of its own, so that each kind is measured with the same.
type onlyWriter struct{ io.Writer }

// zeros is an endless stream of them.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// count reads to the end.
func count(c net.Conn) uint64 {
	n, _ := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{c}, make([]byte, chunk))
	return uint64(n)
}

// files is 0 where the system does not say.
func files() uint64 {
	entries, _ := os.ReadDir("/proc/self/fd")
	return uint64(max(0, len(entries)-1)) // one is the directory's
}

func answer(c net.Conn, n uint64) { c.Write(binary.BigEndian.AppendUint64(nil, n)) }

func (g *guest) late(_ context.Context, c net.Conn) {
	if closeWrite(c) != nil {
		return
	}
	sum := sink(c)
	if report, err := g.sys.Dial(PortReport); err == nil {
		defer report.Close()
		json.NewEncoder(report).Encode(sum)
	}
}

func (g *guest) call(ctx context.Context, c net.Conn) {
	var call Call
	if err := json.NewDecoder(c).Decode(&call); err != nil {
		return
	}
	behave := g.behaviour(call.Behave)
	if behave == nil || call.Behave == PortCall {
		fmt.Fprintf(c, "no behaviour %d", call.Behave)
		return
	}
	back, err := g.sys.Dial(call.Port)
	if err != nil {
		fmt.Fprintf(c, "dial: %v", err)
		return
	}
	defer back.Close()
	stop := context.AfterFunc(ctx, func() { back.Close() })
	defer stop()
	fmt.Fprint(c, "ok")
	closeWrite(c)
	behave(ctx, back)
}

func closeWrite(c net.Conn) error {
	cw, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%T has no CloseWrite", c)
	}
	return cw.CloseWrite()
}

// Pattern is an endless stream of bytes that never repeats within 2 GiB, so that a lost, doubled or moved piece shows.
type Pattern struct{ off uint64 }

// Read fills p.
func (r *Pattern) Read(p []byte) (int, error) {
	for i := range p {
		word := r.off / 4 * 2654435761
		p[i] = byte(word>>(r.off%4*8) ^ word>>17)
		r.off++
	}
	return len(p), nil
}
