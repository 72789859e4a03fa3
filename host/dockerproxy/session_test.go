package dockerproxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/dockerproxy"
)

const evil = `{"HostConfig":{"Binds":["/evil:/x"]}}`

func post(path, body string, headers ...string) string {
	head := "POST " + path + " HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
	for _, h := range headers {
		head += h + "\r\n"
	}
	return head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

const upgrade = "Connection: Upgrade\r\nUpgrade: tcp"

// TestSmuggling sends what makes two parsers see two things. Whatever comes of it, the engine must never get the path, and
// where it says so the client is refused. From CVE-2024-41110 (Content-Length 0), CVE-2026-34040 (a body too large for the
// policy), CVE-2026-6406 (another door), CVE-2023-0629 and facts/faults.md, tests 11 to 13.
func TestSmuggling(t *testing.T) {
	chunked := func(body string) string { return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body) }
	create := "POST /containers/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
	length := fmt.Sprintf("Content-Length: %d\r\n", len(evil))
	const te = "Transfer-Encoding: chunked\r\n"
	large := evil[:len(evil)-1] + `,"Pad":"` + strings.Repeat("x", 17<<20) + `"}`
	for _, test := range []struct {
		name, send string
		want       string // how the last answer begins
	}{
		{"plain", post("/containers/create", evil), "400"},
		{"version", post("/v1.47/containers/create", evil), "400"},
		{"no such version", post("/v1.99/containers/create", evil), "400"},
		{"version of the engine's pattern", post("/v...9/containers/create", evil), "400"},
		{"name", post("/v1.47/containers/create?name=x&platform=", evil), "400"},
		{"two slashes", post("//containers//create", evil), "400"},
		{"dots", post("/v1.99/../containers/x/../create", evil), "400"},
		{"escaped slash", post("/containers%2fcreate", evil), "400"},
		{"escaped dots", post("/containers/x/%2e%2e/create", evil), "400"},
		{"escaped letter", post("/containers/%63reate", evil), "400"},
		{"absolute form", post("http://docker/containers/create", evil), "400"},
		{"absolute form without a path", post("http:containers/create", evil), "400"},
		{"authority form", "CONNECT docker:80 HTTP/1.1\r\nHost: docker\r\n\r\n" + post("/containers/create", evil), "400"},
		{"small method", strings.Replace(post("/containers/create", evil), "POST", "post", 1), "400"},
		{"HTTP/1.0", strings.Replace(post("/containers/create", evil), "HTTP/1.1", "HTTP/1.0", 1), "400"},
		{"HTTP/2.0 on 1.1", strings.Replace(post("/containers/create", evil), "HTTP/1.1", "HTTP/2.0", 1), "505"},
		{"no version", "POST /containers/create\r\n\r\n", "400"},
		{"chunked", create + te + "\r\n" + chunked(evil), "400"},
		{"CL.TE", create + "Content-Length: 4\r\n" + te + "\r\n" + chunked(evil), "400"},
		{"TE.CL", create + te + length + "\r\n" + chunked(evil), "400"},
		{"TE.TE", create + te + "Transfer-Encoding: identity\r\n\r\n" + chunked(evil), "400"},
		{"TE with a tab", create + "Transfer-Encoding:\tchunked\r\n" + length + "\r\n" + evil, "400"},
		{"TE before a colon", create + "Transfer-Encoding : chunked\r\n\r\n" + chunked(evil), "400"},
		{"TE that is none", create + "Transfer-Encoding: xchunked\r\n" + length + "\r\n" + evil, "400"},
		{"TE and gzip", create + "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunked(evil), "400"},
		{"TE of HTTP/1.0", "POST /x HTTP/1.0\r\n" + te + "\r\n" + chunked(post("/containers/create", evil)), "400"},
		{"CVE-2024-41110: CL 0 with a body", create + "Content-Length: 0\r\n\r\n" + evil + "\r\n\r\n", "400"},
		{"CL twice, alike", create + length + length + "\r\n" + evil, "400"},
		{"CL twice", create + length + "Content-Length: 0\r\n\r\n" + evil, "400"},
		{"CL with a sign", create + "Content-Length: +5\r\n\r\n" + evil, "400"},
		{"CL in a list", create + "Content-Length: 5, 5\r\n\r\n" + evil, "400"},
		{"folded header", create + "X: a\r\n Content-Length: 0\r\n" + length + "\r\n" + evil, "400"},
		{"bare LF", strings.ReplaceAll(create, "\r\n", "\n") + length + "\r\n" + evil, "400"},
		{"bare CR", create + "X: a\rContent-Length: 0\r\n" + length + "\r\n" + evil, "400"},
		{"empty line before the end", create + length + "\r\r\n\r\n" + evil, "400"},
		{"two hosts", create + "Host: other\r\n" + length + "\r\n" + evil, "400"},
		{"chunk with an extension", create + te + "\r\n" + fmt.Sprintf("%x;a=b\r\n%s\r\n0\r\n\r\n", len(evil), evil), "400"},
		{"chunk of a wrong size", create + te + "\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(evil)-3, evil), "400"},
		{"chunk with 0x", create + te + "\r\n0x" + chunked(evil), "400"},
		{"chunk too large for a number", create + te + "\r\nfffffffffffffffff\r\n" + evil, "400"},
		{"chunk with LF", create + te + "\r\n" + strings.ReplaceAll(chunked(evil), "\r\n", "\n"), "400"},
		{"chunk below the end", "POST /x HTTP/1.1\r\nHost: d\r\n" + te + "\r\n0;\r\n\r\n" + post("/containers/create", evil), "400"},
		{"CVE-2026-34040: a large body", post("/containers/create", large), "413"},
		{"a large body in chunks", create + te + "\r\n" + chunked(large), "413"},
		{"gzip", post("/containers/create", "\x1f\x8b\x08\x00", "Content-Encoding: gzip"), "400"},
		{"expect", post("/containers/create", evil, "Expect: 100-continue"), "400"},
		{"upgrade", post("/containers/create", evil, upgrade), "400"},
		{"upgrade to h2c", post("/containers/create", evil, "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"), "400"},
		{"form", strings.Replace(post("/containers/create", evil), "application/json", "application/x-www-form-urlencoded", 1), "400"},
		{"after another", post("/containers/x/start", "") + post("/containers/create", evil), "400"},
		{"after a chunked one", "POST /x HTTP/1.1\r\nHost: d\r\n" + te + "\r\n" + chunked("hello") + post("/containers/create", evil), "400"},
		{"after trailers", "POST /x HTTP/1.1\r\nHost: d\r\nTrailer: A\r\n" + te + "\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n" + post("/containers/create", evil), "400"},
		{"after an exec that is gone", post("/exec/gone/start", "{}", upgrade) + post("/containers/create", evil), "400"},
		{"after an attach that fails", post("/containers/gone/attach", "") + post("/containers/create", evil), "404"},
		{"after an upgrade that is ignored", post("/containers/x/start", "", upgrade) + post("/containers/create", evil), "400"},
		{"after a session that is refused", post("/sessions/../session", "", "Upgrade: x") + post("/containers/create", evil), "400"},
		{"after the last one", post("/x", "", "Connection: close") + post("/containers/create", evil), "200"},
		{"preface after another", post("/x", "") + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + post("/containers/create", evil), "505"},
		{"a long head", create + "X: " + strings.Repeat("x", 2<<20), "431"},
		{"many headers", create + strings.Repeat("X: y\r\n", 1<<18), "431"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDockerd(t)
			got := exchange(t, checkedProxy(t, d), test.send)
			if len(got) == 0 || !strings.HasPrefix(got[len(got)-1], test.want) {
				t.Errorf("answers are %.300q: want the last one %s", got, test.want)
			}
			for _, r := range d.requests() {
				if strings.Contains(r.Body, "evil") {
					t.Errorf("the engine got %.200q", r)
				}
			}
		})
	}
}

// TestForward has requests of every framing reach the engine in order over one connection, byte for byte, and their answers
// come back in order.
func TestForward(t *testing.T) {
	const te = "Transfer-Encoding: chunked\r\nTrailer: A\r\n"
	d := startDockerd(t)
	send := "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n" +
		post("/a", "body") +
		"POST /b HTTP/1.1\r\nHost: docker\r\n" + te + "\r\n3\r\nabc\r\n00A\r\n0123456789\r\n0\r\nA: b\r\n\r\n" +
		post("/containers/create?name=c1", `{"Image":"x", "HostConfig": {"Binds": [ "/ok/1:/x:ro", "/moved:/y", "vol:/z"], "Memory": 12345678901234567890.50}}`) +
		"POST /v1.47/volumes/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n" + te + "\r\n2\r\n{}\r\n0\r\n\r\n" +
		"HEAD /h HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"
	c := connect(t, checkedProxy(t, d))
	go func() {
		for _, b := range []byte(send) { // a byte at a time: no piece may matter
			c.Write([]byte{b})
		}
	}()
	in := bufio.NewReader(c)
	if got := answers(t, in, 5); len(got) != 5 || !strings.Contains(got[3], "c1") {
		t.Errorf("answers are %q", got)
	}
	if resp, err := http.ReadResponse(in, &http.Request{Method: "HEAD"}); err != nil || !resp.Close {
		t.Errorf("answer to HEAD is %v, error %v", resp, err)
	}
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("at the end: %q, %v", rest, err)
	}
	want := []request{
		{"HTTP/1.1", "GET", "/_ping", ""}, {"HTTP/1.1", "POST", "/a", "body"}, {"HTTP/1.1", "POST", "/b", "abc0123456789"},
		{"HTTP/1.1", "POST", "/containers/create", `{"Image":"x","HostConfig":{"Binds":["/ok/1:/x:ro","/ok/moved:/y","vol:/z"],"Memory":12345678901234567890.50}}`},
		{"HTTP/1.1", "POST", "/v1.47/volumes/create", "{}"},
		{"HTTP/1.1", "HEAD", "/h", ""},
	}
	if diff := cmp.Diff(want, d.requests()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if n := d.conns(); n != 1 {
		t.Errorf("%d streams for one connection", n)
	}
}

// TestRefusalInOrder pipelines a request that is refused: the answers to those before it come first.
func TestRefusalInOrder(t *testing.T) {
	d := startDockerd(t)
	got := exchange(t, checkedProxy(t, d), post("/a", "1")+post("/b", "2")+post("/containers/create", evil)+post("/c", "3"))
	if len(got) != 3 || !strings.HasPrefix(got[0], `200 {"body":"1"`) || !strings.HasPrefix(got[1], `200 {"body":"2"`) ||
		got[2] != `400 {"message":"/evil is not shared"}` {
		t.Errorf("answers are %q", got)
	}
}

// TestExpect waits for the 100 before it sends the body, as curl does for large ones.
func TestExpect(t *testing.T) {
	body := `{"Image":"` + strings.Repeat("x", 2<<20) + `"}`
	for _, test := range []struct{ name, before, path string }{
		{"first", "", "/containers/create"}, {"after another", post("/a", "1"), "/containers/create"},
		{"one that is not checked", post("/a", "1"), "/build"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDockerd(t)
			c := connect(t, checkedProxy(t, d))
			in := bufio.NewReader(c)
			io.WriteString(c, test.before)
			if test.before != "" {
				answers(t, in, 1)
			}
			head, _, _ := strings.Cut(post(test.path, body, "Expect: 100-continue"), "{")
			io.WriteString(c, head)
			if line, err := in.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" || err != nil {
				t.Fatalf("got %q, error %v", line, err)
			}
			in.ReadString('\n')
			io.WriteString(c, body)
			if got := answers(t, in, 1); len(got) != 1 || !strings.HasPrefix(got[0], "200") {
				t.Errorf("answers are %.100q", got)
			}
			if got := d.requests(); len(got) == 0 || got[len(got)-1].Body != body {
				t.Error("the engine got another body")
			}
		})
	}
}

// TestHijack has streams become raw, after whatever came before on their connection, and requests that could have become so
// and did not be followed by others.
func TestHijack(t *testing.T) {
	for _, test := range []struct {
		name, ask, before string
		status            int
		conns             int
	}{
		{"attach", post("/v1.47/containers/x/attach", "", upgrade), "", 101, 1},
		{"attach without upgrade", post("/containers/x/attach", ""), "", 200, 1},
		{"exec", post("/exec/x/start", "{}", upgrade), "", 101, 1},
		{"after another, as docker-py does", post("/exec/x/start", "{}", upgrade), post("/a", "1"), 101, 2},
		{"after an exec that is gone", post("/exec/x/start", "{}", upgrade), post("/exec/gone/start", "{}", upgrade), 101, 2},
		{"after an upgrade that is ignored, as Java asks", post("/exec/x/start", "{}", upgrade), post("/a", "1", "Connection: Upgrade\r\nUpgrade: TLS/1.2"), 101, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDockerd(t)
			c := connect(t, checkedProxy(t, d))
			in := bufio.NewReader(c)
			if test.before != "" {
				io.WriteString(c, test.before)
				answers(t, in, 1)
			}
			io.WriteString(c, test.ask)
			resp, err := http.ReadResponse(in, nil)
			if err != nil || resp.StatusCode != test.status {
				t.Fatalf("answer is %v, error %v", resp, err)
			}
			raw := "\x00raw\xff" + post("/containers/create", evil) // a program's input, not a request
			io.WriteString(c, raw)
			got := make([]byte, len(raw))
			if _, err := io.ReadFull(in, got); string(got) != raw || err != nil {
				t.Errorf("got %q, error %v", got, err)
			}
			c.CloseWrite()
			if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
				t.Errorf("at the end: %q, %v", rest, err)
			}
			if n := d.conns(); n != test.conns {
				t.Errorf("%d streams: want %d", n, test.conns)
			}
		})
	}
	t.Run("impatient", func(t *testing.T) { // raw bytes come before the engine's answer: they wait for it
		d := startDockerd(t)
		got := exchange(t, checkedProxy(t, d), post("/containers/x/attach", "")+"early")
		if want := []string{"200 early"}; !cmp.Equal(got, want) {
			t.Errorf("answers are %q: want %q", got, want)
		}
	})
}

// TestNoSecondStream cannot dial a second stream: the client gets the reason.
func TestNoSecondStream(t *testing.T) {
	d := startDockerd(t)
	first := make(chan struct{}, 1)
	first <- struct{}{}
	path := servePolicy(t, denied{}, func(ctx context.Context) (net.Conn, error) {
		select {
		case <-first:
			return d.dial(ctx)
		default:
			return nil, fmt.Errorf("the machine is gone")
		}
	})
	got := exchange(t, path, post("/a", "1")+post("/exec/x/start", "{}", upgrade))
	if len(got) != 2 || got[1] != `503 {"message":"the machine is gone"}` {
		t.Errorf("answers are %q", got)
	}
}

// TestRedial has the engine end a connection that is idle: the client must see it end, and not hang.
func TestRedial(t *testing.T) {
	path := startWith(t, denied{}, func(c *net.UnixConn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	})
	c := connect(t, path)
	in := bufio.NewReader(c)
	io.WriteString(c, post("/a", ""))
	if got := answers(t, in, 1); !cmp.Equal(got, []string{"200 ok"}) {
		t.Errorf("answers are %q", got)
	}
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("at the end: %q, %v", rest, err)
	}
	c.Write([]byte(post("/exec/x/start", "{}", upgrade))) // too late
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("later: %q, %v", rest, err)
	}
}

// TestSessionsEnd leaves sessions in every condition and has Serve end: nothing may remain of them.
func TestSessionsEnd(t *testing.T) {
	d := startDockerd(t)
	l, err := net.Listen("unix", t.TempDir()+"/p")
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	p := dockerproxy.Proxy{Dial: d.dial, Policy: denied{}, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- p.Serve(ctx, l) }()
	const half = "POST /containers/create HTTP/1.1\r\nHost: docker\r\nContent-Length: 100\r\n\r\n{"
	for _, test := range []struct {
		send    string
		answers int
	}{
		{"", 0}, {"GET /", 0}, {post("/a", "1"), 1}, {half, 0}, {strings.Replace(half, "containers/create", "build", 1), 0},
		{post("/slow", ""), 0}, {post("/slow", "", upgrade) + "more", 0}, {post("/exec/x/start", "{}", upgrade), 1},
		{post("/a", "1") + post("/exec/x/start", "{}", upgrade), 2}, {post("/a", "1") + post("/slow", "", upgrade), 1},
		{post("/containers/create", evil), 1}, {post("/a", "1", "Connection: close"), 1}, {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0},
	} {
		c := connect(t, l.Addr().String())
		io.WriteString(c, test.send)
		in := bufio.NewReader(c)
		for range test.answers {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("%.100q: %v", test.send, err)
			}
			if resp.StatusCode != http.StatusSwitchingProtocols {
				io.Copy(io.Discard, resp.Body)
			}
		}
	}
	client := http2Client(t, l.Addr().String())
	if _, err := client.Get("http://docker/_ping"); err != nil {
		t.Error(err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Serve did not end")
	}
	client.CloseIdleConnections()
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestClientGoes has a client vanish while the engine is at its request: the engine must learn of it, and give up.
func TestClientGoes(t *testing.T) {
	for _, send := range []string{post("/slow", ""), post("/slow", "", upgrade), post("/a", "") + post("/slow", "", upgrade)} {
		gone := make(chan struct{})
		path := startWith(t, denied{}, func(c *net.UnixConn) {
			in := bufio.NewReader(c)
			for {
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				if r.URL.Path == "/slow" {
					in.ReadByte()
					close(gone)
					return
				}
				io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
			}
		})
		c := connect(t, path)
		io.WriteString(c, send)
		c.Close()
		select {
		case <-gone:
		case <-time.After(patience):
			t.Errorf("%q: the engine works for nobody", send)
		}
	}
}
