//go:build linux

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// maxMessage bounds one line of the monitor, in bytes. What we ask is answered in a few hundred.
const maxMessage = 1 << 20

// message is anything that QEMU says on its monitor (QEMU's docs/interop/qmp-spec): the greeting, the answer to a command
// or an event.
type message struct {
	QMP    *json.RawMessage `json:"QMP"`
	ID     uint64           `json:"id"`
	Return json.RawMessage  `json:"return"`
	Error  *qmpError        `json:"error"`
	Event  string           `json:"event"`
	Data   json.RawMessage  `json:"data"`
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

// decode reads one line. A line that is none of the four kinds is an error.
func decode(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("decode monitor's message: %w", err)
	}
	if m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
		return message{}, errors.New("decode monitor's message: neither greeting, answer nor event")
	}
	return m, nil
}

// monitor is the client of one QEMU's QMP.
type monitor struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage) // called by the reader, one at a time; it must not wait for answers
	greeted chan struct{}                           // closed when the greeting has come
	done    chan struct{}                           // closed when the reader has ended

	mu      sync.Mutex
	lastID  uint64
	waiting map[uint64]chan message
	err     error // why the reader ended
}

// newMonitor starts reading conn, which it owns from now on. The caller closes the monitor.
func newMonitor(conn net.Conn, onEvent func(string, json.RawMessage)) *monitor {
	m := &monitor{
		conn: conn, onEvent: onEvent, greeted: make(chan struct{}), done: make(chan struct{}),
		waiting: map[uint64]chan message{},
	}
	go m.read()
	return m
}

func (m *monitor) read() {
	defer close(m.done)
	err := m.messages()
	m.conn.Close() // who still writes must not wait for a reader that may never come
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = fmt.Errorf("read monitor: %w", err)
}

// messages reads to the end, which is always an error.
func (m *monitor) messages() error {
	greeted := false
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(nil, maxMessage)
	for lines.Scan() {
		msg, err := decode(lines.Bytes())
		if err != nil {
			return err
		}
		switch {
		case msg.QMP != nil:
			if greeted {
				return errors.New("monitor greeted twice")
			}
			greeted = true
			close(m.greeted)
		case msg.Event != "":
			m.onEvent(msg.Event, msg.Data)
		default:
			m.answer(msg)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.EOF
}

func (m *monitor) answer(msg message) {
	m.mu.Lock()
	c := m.waiting[msg.ID]
	delete(m.waiting, msg.ID)
	m.mu.Unlock()
	if c != nil { // else the caller gave up
		c <- msg
	}
}

// handshake waits for the greeting and leaves the negotiation mode; no event comes before that.
func (m *monitor) handshake(ctx context.Context) error {
	select {
	case <-m.greeted:
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return fmt.Errorf("wait for monitor's greeting: %w", ctx.Err())
	}
	return m.execute(ctx, "qmp_capabilities", nil)
}

// execute runs a command; a refusal is a *qmpError. Its answer goes into out, where that is not nil.
func (m *monitor) execute(ctx context.Context, command string, out any) error {
	answer := make(chan message, 1)
	m.mu.Lock()
	m.lastID++
	id := m.lastID
	m.waiting[id] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
	}()
	line, err := json.Marshal(struct {
		Execute string `json:"execute"`
		ID      uint64 `json:"id"`
	}{command, id})
	if err != nil {
		return err
	}
	if d, ok := ctx.Deadline(); ok {
		m.conn.SetWriteDeadline(d)
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send %s to monitor: %w", command, err)
	}
	select {
	case msg := <-answer:
		switch {
		case msg.Error != nil:
			return fmt.Errorf("monitor refused %s: %w", command, msg.Error)
		case out == nil:
			return nil
		default:
			return json.Unmarshal(msg.Return, out)
		}
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return fmt.Errorf("wait for monitor's answer to %s: %w", command, ctx.Err())
	}
}

// close ends the monitor and waits for its reader. It may be called twice.
func (m *monitor) close() {
	m.conn.Close()
	<-m.done
}
