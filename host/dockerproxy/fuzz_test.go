package dockerproxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// seen is a request as a parser sees it.
type seen struct {
	Method, Path, Body string
	Close              bool
}

// ours reads requests as a session does, up to the first one that is refused or incomplete.
func ours(data []byte) (out []seen, refused bool) {
	in := bufio.NewReaderSize(bytes.NewReader(data), 64)
	for {
		head, err := readHead(in)
		if err != nil {
			return out, !errors.Is(err, io.EOF)
		}
		r, err := parseHead(head)
		if err != nil {
			return out, true
		}
		body, raw := framingOf(r), []byte(nil)
		for !body.over() {
			if _, err := in.Peek(1); err != nil {
				return out, false
			}
			b, _ := in.Peek(in.Buffered())
			n, err := body.take(b)
			if err != nil {
				return out, true
			}
			raw = append(raw, b[:n]...)
			in.Discard(n)
		}
		if len(r.TransferEncoding) > 0 {
			if raw, err = io.ReadAll(newChunked(raw)); err != nil {
				return out, true
			}
		}
		out = append(out, seen{r.Method, r.URL.Path, string(raw), r.Close})
	}
}

func newChunked(raw []byte) io.Reader {
	r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), bytes.NewReader(raw))))
	if err != nil {
		panic(err)
	}
	return r.Body
}

// theirs reads requests as dockerd does.
func theirs(data []byte) (out []seen, err error) {
	in := bufio.NewReader(bytes.NewReader(data))
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return out, err
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return out, err
		}
		out = append(out, seen{r.Method, r.URL.Path, string(body), r.Close})
	}
}

// FuzzRequests holds our view of a stream of requests to dockerd's: what we let through is what it sees.
func FuzzRequests(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: d\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\n\r\nabcPOST //b%2fc HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0A\r\n0123456789\r\n0\r\nA: b\r\n\r\nGET /x HTTP/1.1\r\nConnection: close\r\n\r\n",
		"POST /a HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", "GET / HTTP/1.1\nX: a\n\n", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\n\r\n",
		preface + "SM\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, refused := ours(data)
		want, err := theirs(data)
		if len(got) > len(want) { // a trailer that is no header: dockerd fails there and ends the connection
			if err == nil || errors.Is(err, io.EOF) && len(got) > len(want)+1 {
				t.Fatalf("we see %+v, dockerd %+v, %v", got, want, err)
			}
			got = got[:len(want)]
		}
		if !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("we see %+v, dockerd %+v", got, want)
		}
		if len(got) < len(want) && !refused {
			t.Fatalf("we wait for more after %+v, dockerd sees %+v", got, want)
		}
	})
}

// engineMount and engineContainer are what dockerd reads of a container's mounts.
type engineMount struct {
	Type, Source  string
	VolumeOptions *struct {
		DriverConfig *struct {
			Name    string
			Options map[string]string
		}
	}
}

type engineContainer struct {
	HostConfig *struct {
		Binds  []string
		Mounts []engineMount
	}
}

func (c engineContainer) sources() (out []string) {
	if c.HostConfig == nil {
		return nil
	}
	for _, b := range c.HostConfig.Binds {
		if source, _, ok := strings.Cut(b, ":"); ok {
			out = append(out, source)
		}
	}
	for _, m := range c.HostConfig.Mounts {
		if m.Type == "bind" {
			out = append(out, m.Source)
		}
		if m.Type == "volume" && m.VolumeOptions != nil && m.VolumeOptions.DriverConfig != nil {
			d := m.VolumeOptions.DriverConfig
			if (d.Name == "" || d.Name == "local") && slices.Contains(strings.Split(d.Options["o"], ","), "bind") {
				out = append(out, d.Options["device"])
			}
		}
	}
	return slices.DeleteFunc(out, func(s string) bool { return !path.IsAbs(s) })
}

// marks is a Policy that gives each path a mark.
type marks struct{}

func (marks) Source(p string) (string, error) { return "/marked" + p, nil }

// same is one that changes nothing.
type same struct{}

func (same) Source(p string) (string, error) { return p, nil }

// FuzzRewrite holds what we check to what dockerd reads: each path that it finds in the new body has been seen, and all else
// is as it was.
func FuzzRewrite(f *testing.F) {
	for _, s := range []string{
		`{"HostConfig":{"Binds":["/a:/b","v:/c"],"Mounts":[{"Type":"bind","Source":"/a"}]},"X":[1e400,-0,"\ud800",null,true]}`,
		`{"hostconfig":{"mounts":[{"type":"volume","volumeoptions":{"driverconfig":{"options":{"o":"ro,bind","device":"/x","type":"none"}}}}]}}`,
		`{"HostConfig":{},"hoſtconfig":{"Binds":["/a:/b"]}}`, `[{"a":1,"a":2}]`, `{"HostConfig":{"Binds":["/a:/b",null,3]}}`, `null`, `{"\u0000":"\u0000"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		kept, err := rewrite(checkContainer, same{}, body)
		if err != nil {
			return
		}
		if a, b := decoded(t, body), decoded(t, kept); !reflect.DeepEqual(a, b) {
			t.Fatalf("%q became %q", body, kept)
		}
		marked, err := rewrite(checkContainer, marks{}, body)
		if err != nil {
			return
		}
		var engine engineContainer
		if json.Unmarshal(marked, &engine) != nil {
			return // refused by the engine
		}
		for _, source := range engine.sources() {
			if !strings.HasPrefix(source, "/marked/") {
				t.Fatalf("%q became %q, where the engine finds %q", body, marked, source)
			}
		}
	})
}

func decoded(t *testing.T, body []byte) (v any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	return v
}

// FuzzVerdict has the guest answer anything, in any pieces: there is at most one verdict, and the pieces do not matter.
func FuzzVerdict(f *testing.F) {
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 UPGRADED\r\n\r\nraw"), 30)
	f.Add([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"), 3)
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"), 5)
	f.Add([]byte("\x00\r\n\r\n"), 1)
	f.Fuzz(func(t *testing.T, answer []byte, cut int) {
		decide := func(pieces ...[]byte) (string, *verdict) {
			v := newVerdict(&http.Request{Method: "POST"})
			for _, p := range pieces {
				if v.see(p) {
					break
				}
			}
			select {
			case raw := <-v.spliced:
				if raw {
					return "raw", v
				}
				return "HTTP", v
			default:
				return "open", v
			}
		}
		whole, v := decide(answer)
		if len(v.spliced) > 0 {
			t.Fatal("two verdicts")
		}
		cut = max(0, min(cut, len(answer)))
		if parts, _ := decide(answer[:cut], answer[cut:]); parts != whole {
			t.Fatalf("%q is %s, in two pieces at %d %s", answer, whole, cut, parts)
		}
	})
}
