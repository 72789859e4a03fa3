package vmtest

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm"
)

// fakeBoot is a fake machine whose guest behaves.
func fakeBoot(t *testing.T) vm.Machine {
	t.Helper()
	m, err := (&Driver{Guest: behaving}).Open(t.Context(), vm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ready := listen(t, m, PortReady)
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Stop(t.Context()) })
	c, err := ready.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	return m
}

// TestMeasuredPorts is that the ports which benchmarks use carry what they claim to.
func TestMeasuredPorts(t *testing.T) {
	m := fakeBoot(t)
	number := func(t *testing.T, c net.Conn) uint64 {
		t.Helper()
		b, err := io.ReadAll(c)
		if err != nil || len(b) != 8 {
			t.Fatalf("answer of %d bytes, error %v; want 8", len(b), err)
		}
		return binary.BigEndian.Uint64(b)
	}
	const size = 3*chunk + 5
	open := func(t *testing.T, port uint32) net.Conn {
		c := dial(t, m, port)
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c
	}
	t.Run("count", func(t *testing.T) {
		c := open(t, PortCount)
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if err := closeWrite(c); err != nil {
			t.Fatal(err)
		}
		if n := number(t, c); n != size {
			t.Errorf("counted %d bytes of %d", n, size)
		}
	})
	t.Run("zeros", func(t *testing.T) {
		c := open(t, PortZeros)
		ask(t, c, size)
		b, err := io.ReadAll(c)
		if err != nil || len(b) != size {
			t.Fatalf("%d bytes, error %v; want %d", len(b), err, size)
		}
		for i, x := range b {
			if x != 0 {
				t.Fatalf("byte %d is %#x", i, x)
			}
		}
	})
	t.Run("files", func(t *testing.T) {
		before := number(t, open(t, PortFiles))
		if before == 0 {
			t.Skip("this system does not tell a process's open files")
		}
		const more = 20 // far above the streams that may still be closing
		for range more {
			f, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
		}
		if now := number(t, open(t, PortFiles)); now < before+more/2 {
			t.Errorf("%d open files, then %d with %d more", before, now, more)
		}
	})
}
