package dockerproxy_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/coracle-engine/coracle/host/dockerproxy"
)

// dockerd stands for the engine: net/http's server, as dockerd has, and handlers that treat connections as dockerd's do. It
// keeps what requests it got.
type dockerd struct {
	path string

	mu   sync.Mutex
	got  []request
	conn int // connections that were opened
}

type request struct{ Proto, Method, Path, Body string }

// startDockerd serves until the test's end.
func startDockerd(t testing.TB) *dockerd {
	t.Helper()
	d := &dockerd{path: filepath.Join(t.TempDir(), "d")}
	l, err := net.Listen("unix", d.path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: d, Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				d.mu.Lock()
				d.conn++
				d.mu.Unlock()
			}
		},
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return d
}

func (d *dockerd) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", d.path)
}

func (d *dockerd) requests() []request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]request(nil), d.got...)
}

func (d *dockerd) conns() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn
}

func (d *dockerd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body []byte
	var err error
	if !strings.Contains(r.URL.Path, "early") {
		body, err = io.ReadAll(r.Body)
	}
	d.mu.Lock()
	d.got = append(d.got, request{r.Proto, r.Method, r.URL.Path, string(body)})
	d.mu.Unlock()
	name := r.URL.Query().Get("name")
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case strings.HasSuffix(r.URL.Path, "/attach"), strings.HasSuffix(r.URL.Path, "/start") && strings.HasPrefix(r.URL.Path, "/exec/"):
		d.hijack(w, r)
	case strings.HasPrefix(r.URL.Path, "/grpc.test/"):
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("Content-Type", "application/grpc")
		w.Write(body)
		w.Header().Set("Grpc-Status", "0")
	case strings.HasSuffix(r.URL.Path, "/slow"): // an answer that comes when the client has gone
		<-r.Context().Done()
	default:
		w.Header().Set("Api-Version", "1.47")
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"path": r.URL.Path, "body": string(body), "name": name})
	}
}

// hijack answers as dockerd's attach and exec start do: an exec that is gone gets an answer after which the connection lives
// on, an attach that fails one that ends it.
func (d *dockerd) hijack(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.Path, "/gone/") && strings.HasPrefix(r.URL.Path, "/exec/") {
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"message":"no such exec"}`)
		return
	}
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	switch {
	case strings.Contains(r.URL.Path, "/gone/"):
		io.WriteString(c, "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nno such container\r\n")
		return
	case r.Header.Get("Upgrade") != "":
		io.WriteString(c, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	default:
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n")
	}
	io.Copy(c, c)
}

// denied is a Policy that has /ok, moves /moved to /ok/moved, and refuses all else.
type denied struct{}

func (denied) Source(p string) (string, error) {
	switch {
	case p == "/ok" || strings.HasPrefix(p, "/ok/"):
		return p, nil
	case strings.HasPrefix(p, "/moved"):
		return "/ok" + p, nil
	}
	return "", fmt.Errorf("%s is not shared", p)
}

// checkedProxy is a proxy with a policy before d.
func checkedProxy(t testing.TB, d *dockerd) string {
	return servePolicy(t, denied{}, d.dial)
}

var _ dockerproxy.Policy = denied{}

// exchange sends text in one piece, ends its side and returns all answers as STATUS BODY lines.
func exchange(t testing.TB, path, text string) []string {
	t.Helper()
	c := connect(t, path)
	go func() {
		io.WriteString(c, text)
		c.CloseWrite()
	}()
	return answers(t, bufio.NewReader(c), -1)
}

// answers reads n answers, or all up to the end.
func answers(t testing.TB, in *bufio.Reader, n int) []string {
	t.Helper()
	var out []string
	for n < 0 || len(out) < n {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return out
		}
		body, _ := io.ReadAll(resp.Body)
		out = append(out, fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(body))))
	}
	return out
}
