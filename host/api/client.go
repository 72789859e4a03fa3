package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/host/socket"
)

// Client talks to one machine's host process. Its methods may be called from several goroutines.
type Client struct {
	m    paths.Machine
	http *http.Client
}

// New makes a client of machine m. It opens nothing yet, and m need not run or exist.
func New(m paths.Machine) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return socket.Dial(ctx, m.APISocket()) }
	return &Client{m: m, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status tells how the machine is. Where no host process answers, it is what the last one left behind: Stopped, or Failed
// with the Error that ended it. CodeNotFound: there is no such machine.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	err := c.call(ctx, http.MethodGet, "/v1/status", nil, &st)
	if CodeOf(err) != CodeNotRunning {
		return st, err
	}
	return offline(c.m)
}

// offline is the status of a machine that no process answers for.
func offline(m paths.Machine) (Status, error) {
	if _, err := os.Stat(m.Dir); err != nil {
		return Status{}, &Error{Code: CodeNotFound, Message: fmt.Sprintf("there is no machine %q", m.Name), Hint: "run `coracle start " + m.Name + "` to make it"}
	}
	st := Status{Name: m.Name, State: Stopped}
	data, err := os.ReadFile(m.Last())
	if err != nil || json.Unmarshal(data, &st) != nil {
		return Status{Name: m.Name, State: Stopped}, nil
	}
	st.Name, st.PID, st.Services, st.Context = m.Name, 0, nil, ""
	switch st.State {
	case Stopped, Failed, Suspended:
	default: // the process had no time to say how it ended
		st.State = Failed
		st.Error = &Error{Code: CodeCrashed, Message: "the machine's host process ended unexpectedly", Hint: "run `coracle start " + m.Name + "` again; no data that was on disk is lost"}
	}
	return st, nil
}

// Watch calls f with every event since the host process was launched, the past ones first and in order (so the last
// EventState among them is the current state), then with each new one. It returns f's error when f fails, ctx's when that
// ends, and nil when the host process has ended. CodeNotRunning: no host process answers.
func (c *Client) Watch(ctx context.Context, f func(Event) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/watch", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var e Event
		if err := dec.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return nil // however the stream ended, nobody is there any more
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

// Ping asks the Engine API, as any client of the machine's Docker socket would, and fails unless it answers that it is well.
func (c *Client) Ping(ctx context.Context) error {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return socket.Dial(ctx, c.m.DockerSocket())
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ping the Docker Engine: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ping the Docker Engine: it answered %s", resp.Status)
	}
	return nil
}

// Stop ends the machine and returns when its host process is done with it. The guest is asked to shut down in order,
// which takes as long as its containers' stop signals; force pulls the plug instead, also of a stop that is under way.
// CodeNotRunning: it was not running, nothing happened.
func (c *Client) Stop(ctx context.Context, force bool) error {
	asked := false
	var failed *Error
	err := c.Watch(ctx, func(e Event) error {
		if e.Kind == EventError {
			failed = e.Error
		}
		if asked {
			return nil
		}
		asked = true // watching first: the end cannot be missed
		return c.call(ctx, http.MethodPost, "/v1/stop", StopRequest{Force: force}, nil)
	})
	if err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	return nil
}

// StopRequest is the body of POST /v1/stop.
type StopRequest struct {
	Force bool `json:"force"`
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("decode answer to %s: %w", path, err)
	}
	return nil
}

// notRunning turns the ways in which nobody answers into one class.
func (c *Client) notRunning(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrPermission) {
		return &Error{Code: CodePermission, Message: fmt.Sprintf("machine %q belongs to another user: %v", c.m.Name, err)}
	}
	return &Error{Code: CodeNotRunning, Message: fmt.Sprintf("machine %q is not running", c.m.Name), Hint: "run `coracle start " + c.m.Name + "`"}
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
	req, err := http.NewRequestWithContext(ctx, method, "http://coracled"+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.notRunning(ctx, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

// readError makes of a refusal the error that the host process meant.
func readError(resp *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var e Error
	if json.Unmarshal(data, &e) == nil && e.Code != "" {
		return &e
	}
	return Errorf(CodeInternal, "host process answered %s: %s", resp.Status, bytes.TrimSpace(data))
}
