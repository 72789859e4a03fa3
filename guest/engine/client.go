//go:build linux

package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// answerTime bounds one question to dockerd.
const answerTime = 30 * time.Second

// get asks the API at socket and hands its answer to read, as any client would.
func get(ctx context.Context, socket, path string, read func(io.Reader) error) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("ask engine: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask engine: it answered %s", resp.Status)
	}
	return read(resp.Body)
}

func ping(ctx context.Context, socket string) error {
	return get(ctx, socket, "/_ping", func(io.Reader) error { return nil })
}

// info is what of dockerd's state decides how it can take new settings.
type info struct {
	ContainersRunning int
	ContainersPaused  int
	Swarm             struct{ LocalNodeState string }
}

func (i info) running() bool { return i.ContainersRunning+i.ContainersPaused > 0 }
func (i info) swarm() bool {
	return i.Swarm.LocalNodeState != "" && i.Swarm.LocalNodeState != "inactive"
}

func getInfo(ctx context.Context, socket string) (info, error) {
	var i info
	err := get(ctx, socket, "/info", func(r io.Reader) error { return json.NewDecoder(r).Decode(&i) })
	return i, err
}

// reloaded says whether dockerd has taken new settings since the time from.
func reloaded(ctx context.Context, socket string, from time.Time) (bool, error) {
	now := time.Now()
	since := from
	if step := now.Round(0).Sub(from.Round(0)) - now.Sub(from); step < 0 { // the clock was set back meanwhile
		since = from.Add(step)
	}
	query := url.Values{
		"since": {stamp(since)}, "until": {stamp(now)}, "filters": {`{"type":{"daemon":true},"event":{"reload":true}}`},
	}
	n := 0
	err := get(ctx, socket, "/events?"+query.Encode(), func(r io.Reader) error {
		var err error
		n, err = io.ReadFull(r, make([]byte, 1))
		if err == io.EOF {
			return nil
		}
		return err
	})
	return n > 0, err
}

func stamp(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }
