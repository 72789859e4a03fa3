package dockerproxy_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// http2Client speaks HTTP/2 from its first byte.
func http2Client(t testing.TB, path string) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// TestHTTP2 goes through dockerd's second door, which BuildKit's newer clients use: gRPC works, and requests that name host
// paths are checked there too.
func TestHTTP2(t *testing.T) {
	d := startDockerd(t)
	client := http2Client(t, checkedProxy(t, d))
	for _, test := range []struct {
		name, path, kind, body string
		status                 int
		got                    string // the body that the engine gets
	}{
		{"get", "/_ping", "", "", 200, ""},
		{"refused", "/v1.47/containers/create", "application/json", evil, 400, "none"},
		{"checked", "/containers/create?name=x", "application/json", `{ "HostConfig": {"Binds":["/moved:/x"]}}`, 200, `{"HostConfig":{"Binds":["/ok/moved:/x"]}}`},
		{"escaped", "/containers%2Fcreate", "application/json", evil, 400, "none"},
		{"disguised", "/volumes/create", "application/grpc", `{"DriverOpts":{"o":"bind","type":"none","device":"/evil"}}`, 400, "none"},
		{"large", "/containers/create", "application/json", evil[:len(evil)-1] + `,"P":"` + strings.Repeat("x", 17<<20) + `"}`, 413, "none"},
		{"grpc", "/grpc.test/Call", "application/grpc", strings.Repeat("data", 1<<18), 200, strings.Repeat("data", 1<<18)},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(d.requests())
			resp, err := client.Post("http://docker"+test.path, test.kind, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if resp.StatusCode != test.status || err != nil || resp.ProtoMajor != 2 {
				t.Errorf("answer is %s %s %.200q, error %v", resp.Proto, resp.Status, body, err)
			}
			if test.name == "grpc" && (resp.Trailer.Get("Grpc-Status") != "0" || string(body) != test.body) {
				t.Errorf("trailer is %v, %d bytes", resp.Trailer, len(body))
			}
			got := d.requests()[before:]
			if test.got == "none" {
				if len(got) > 0 {
					t.Errorf("the engine got %.200q", got)
				}
				return
			}
			if len(got) != 1 || got[0].Body != test.got || got[0].Proto != "HTTP/2.0" {
				t.Errorf("the engine got %.200q", got)
			}
		})
	}
	if n := d.conns(); n > 4 {
		t.Errorf("%d streams", n)
	}
}

// TestHTTP2Both has both sides of one request talk at once, as a build's session does.
func TestHTTP2Both(t *testing.T) {
	path := func() string {
		l, err := net.Listen("unix", t.TempDir()+"/e")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			rc.Flush()
			buf := make([]byte, 100)
			for {
				n, err := r.Body.Read(buf)
				w.Write(bytes.ToUpper(buf[:n]))
				rc.Flush()
				if err != nil {
					return
				}
			}
		})}
		server.Protocols.SetUnencryptedHTTP2(true)
		go server.Serve(l)
		t.Cleanup(func() { server.Close() })
		return l.Addr().String()
	}()
	client := http2Client(t, servePolicy(t, denied{}, func(ctx context.Context) (net.Conn, error) { return net.Dial("unix", path) }))
	r, w := io.Pipe()
	resp, err := client.Post("http://docker/moby.buildkit.v1.Control/Session", "application/grpc", r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got []string
	for _, word := range []string{"one", "two", "three"} {
		io.WriteString(w, word)
		buf := make([]byte, len(word))
		if _, err := io.ReadFull(resp.Body, buf); err != nil {
			t.Fatal(err)
		}
		got = append(got, string(buf))
	}
	w.Close()
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Error(err)
	}
	if want := []string{"ONE", "TWO", "THREE"}; !cmp.Equal(got, want) {
		t.Errorf("got %q: want %q", got, want)
	}
}
