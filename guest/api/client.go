package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Dialer opens a raw stream to one of the guest's ports; vm.Machine's Dial is one.
type Dialer func(ctx context.Context, port uint32) (net.Conn, error)

// maxLine bounds an event and any other answer of the guest's, in bytes.
const maxLine = 1 << 20

// Client is the host's side. Its methods may be called from several goroutines.
type Client struct {
	dial   Dialer
	secret []byte
	http   *http.Client
}

// NewClient makes a client of the guest that dial reaches and that was booted with secret. It opens nothing yet.
func NewClient(dial Dialer, secret []byte) *Client {
	c := &Client{dial: dial, secret: secret}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx, PortAgent) },
	}}
	return c
}

// Dial opens a stream to port and greets, both bounded by ctx: a guest can take a stream and nothing that is sent on it. The
// caller closes it.
func (c *Client) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := c.dial(ctx, port)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = Greet(conn, c.secret)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet port %d: %w", port, err)
	}
	return conn, nil
}

// Close drops the client's idle connections. Streams from Dial and Watch stay open.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Hello asks the guest who it is, and fails where it speaks another version of this protocol.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	var h Hello
	if err := c.call(ctx, http.MethodGet, "/v1/hello", nil, &h); err != nil {
		return h, err
	}
	if h.Version != Version {
		return h, fmt.Errorf("guest speaks protocol version %d, this host %d", h.Version, Version)
	}
	return h, nil
}

// Apply makes spec the whole desired guest and returns when it is in force.
func (c *Client) Apply(ctx context.Context, spec Spec) error {
	return c.call(ctx, http.MethodPut, "/v1/spec", spec, nil)
}

// Published tells what became of forwards.
func (c *Client) Published(ctx context.Context, list []Publication) error {
	return c.call(ctx, http.MethodPost, "/v1/published", list, nil)
}

// SetTime sets the guest's clock.
func (c *Client) SetTime(ctx context.Context, now time.Time) error {
	return c.call(ctx, http.MethodPut, "/v1/time", now, nil)
}

// Shutdown asks for an orderly end: containers get their stop signals, file systems are synced and unmounted, the machine
// powers off. It returns when the guest has taken the order.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/shutdown", nil, nil)
}

// Watch calls f with every event since the guest's boot, the past ones first, until ctx ends, the guest goes away or f
// returns an error, which it then returns. The end of the stream without any of these is io.ErrUnexpectedEOF.
func (c *Client) Watch(ctx context.Context, f func(Event) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/watch", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine) // the guest is not trusted with our memory
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("watch guest: %w", err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("watch guest: %w", err)
}

// Refusal is the guest's answer to a call that it could take and did not do.
type Refusal struct {
	Call   string // method and path
	Reason string // in the guest's words
}

// Error says both.
func (r *Refusal) Error() string { return "guest refused " + r.Call + ": " + r.Reason }

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxLine)).Decode(out); err != nil {
		return fmt.Errorf("decode guest's answer to %s: %w", path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("call guest: %w", err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if resp.StatusCode == http.StatusConflict {
			return nil, fmt.Errorf("%w: %s", ErrRestart, strings.TrimSpace(strings.ReplaceAll(string(msg), ErrRestart.Error()+": ", "")))
		}
		return nil, &Refusal{Call: method + " " + path, Reason: strings.TrimSpace(string(msg))}
	}
	return resp, nil
}
