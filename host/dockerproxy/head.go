package dockerproxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// maxRequestHead is what dockerd takes.
const maxRequestHead = 1 << 20

// preface begins a connection that speaks HTTP/2 without asking (RFC 9113, section 3.4), as gRPC clients do.
const preface = "PRI * HTTP/2.0\r\n\r\n"

// refusal is an answer of our own.
type refusal struct {
	status  int
	message string
}

func (r *refusal) Error() string { return r.message }

func badRequest(format string, args ...any) error {
	return &refusal{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// readHead returns the bytes of the next request up to its empty line. An error is a refusal or the reader's own.
func readHead(in *bufio.Reader) ([]byte, error) {
	var head []byte
	for line := 0; ; {
		part, err := in.ReadSlice('\n')
		head = append(head, part...)
		if line += len(part); len(head) > maxRequestHead {
			return nil, &refusal{http.StatusRequestHeaderFieldsTooLarge, "request's head is too long"}
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if text := head[len(head)-line:]; string(text) == "\r\n" || string(text) == "\n" {
			return head, nil
		}
		line = 0
	}
}

// parseHead reads head as dockerd does, with net/http's parser, and refuses what two parsers could take differently.
func parseHead(head []byte) (*http.Request, error) {
	chunked, err := checkLines(head)
	if err != nil {
		return nil, err
	}
	r, err := http.ReadRequest(bufio.NewReaderSize(bytes.NewReader(head), len(head)))
	if err != nil {
		return nil, badRequest("malformed request: %v", err)
	}
	switch {
	case r.ProtoMajor != 1:
		return nil, &refusal{http.StatusHTTPVersionNotSupported, "request is neither HTTP/1.0 nor HTTP/1.1"}
	case r.Method == http.MethodConnect || r.URL.Opaque != "" || !strings.HasPrefix(r.URL.Path, "/") && r.RequestURI != "*":
		return nil, badRequest("request names no path")
	case chunked && !r.ProtoAtLeast(1, 1):
		return nil, badRequest("HTTP/1.0 request has a Transfer-Encoding")
	}
	return r, nil
}

// once are headers that may not come twice, nor the first two together. net/http refuses white space before their colons.
var once = [...]string{"Content-Length", "Transfer-Encoding", "Host"}

// checkLines refuses lines that do not end with CR LF or that continue another one, and framing that is told twice. It returns
// whether there is a Transfer-Encoding, which net/http hides from us where it ignores it.
func checkLines(head []byte) (chunked bool, err error) {
	var seen [len(once)]bool
	n := -1
	for line := range bytes.Lines(head[:len(head)-len(lastLine(head))]) {
		n++
		text, ok := bytes.CutSuffix(line, []byte("\r\n"))
		if !ok || bytes.ContainsAny(text, "\r\x00") {
			return false, badRequest("malformed request: stray control character")
		}
		if n == 0 {
			continue
		}
		if text[0] == ' ' || text[0] == '\t' {
			return false, badRequest("malformed request: folded header")
		}
		name, _, _ := bytes.Cut(text, []byte(":"))
		for i, header := range once {
			if !strings.EqualFold(string(name), header) {
				continue
			}
			if seen[i] {
				return false, badRequest("malformed request: several %s headers", header)
			}
			seen[i] = true
		}
	}
	if string(lastLine(head)) != "\r\n" {
		return false, badRequest("malformed request: stray control character")
	}
	if seen[0] && seen[1] {
		return false, badRequest("malformed request: both Content-Length and Transfer-Encoding")
	}
	return seen[1], nil
}

// lastLine is head's empty line.
func lastLine(head []byte) []byte {
	if bytes.HasSuffix(head, []byte("\r\n")) {
		return head[len(head)-2:]
	}
	return head[len(head)-1:]
}

// reframe is head for a body of n bytes that follows at once. Its other lines stay as they are.
func reframe(head []byte, n int) []byte {
	out := make([]byte, 0, len(head)+n+len("Content-Length: 12345678\r\n"))
	for _, line := range bytes.SplitAfter(head[:len(head)-2], []byte("\n")) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		switch strings.ToLower(string(name)) {
		case "content-length", "transfer-encoding", "trailer", "expect":
			continue
		}
		out = append(out, line...)
	}
	out = append(out, "Content-Length: "...)
	out = strconv.AppendInt(out, int64(n), 10)
	return append(out, "\r\n\r\n"...)
}

// route is the path by which dockerd chooses its handler: decoded, clean, without the API's version. dockerd redirects a path
// that is not clean; the policy does not rely on that.
func route(u *url.URL) string {
	p := path.Clean("/" + u.Path)
	if rest, ok := strings.CutPrefix(p, "/v"); ok {
		if after := strings.TrimLeft(rest, "0123456789."); len(after) < len(rest) && strings.HasPrefix(after, "/") {
			return after
		}
	}
	return p
}

// mayHijack is whether the engine may stop speaking HTTP on r's connection: on the routes that do so, and wherever a client
// asks for it.
func mayHijack(r *http.Request) bool {
	p := route(r.URL)
	switch {
	case len(r.Header["Upgrade"]) > 0, p == "/session", p == "/grpc":
		return true
	case strings.HasPrefix(p, "/containers/"):
		return strings.HasSuffix(p, "/attach") || strings.HasSuffix(p, "/attach/ws")
	}
	return strings.HasPrefix(p, "/exec/") && strings.HasSuffix(p, "/start")
}
