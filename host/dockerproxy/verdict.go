package dockerproxy

import (
	"bufio"
	"bytes"
	"net/http"
)

// maxAnswerHead bounds what is kept of an answer while its head is incomplete.
const maxAnswerHead = 256 << 10

// verdict looks at the head of the first answer of a stream, to a request that may have ended HTTP there.
type verdict struct {
	request *http.Request
	seen    []byte
	spliced chan bool // one value: whether the stream is raw from now on
}

func newVerdict(r *http.Request) *verdict {
	return &verdict{request: r, spliced: make(chan bool, 1)}
}

// see is told the answer's bytes as they pass, and returns whether it needs no more.
func (v *verdict) see(b []byte) bool {
	v.seen = append(v.seen, b...)
	for {
		head, rest, ok := bytes.Cut(v.seen, []byte("\r\n\r\n"))
		if !ok {
			if len(v.seen) > maxAnswerHead {
				v.spliced <- false
				return true
			}
			return false
		}
		answer, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(v.seen[:len(head)+4])), v.request)
		if err == nil && answer.StatusCode/100 == 1 && answer.StatusCode != http.StatusSwitchingProtocols {
			v.seen = rest // an interim answer
			continue
		}
		v.spliced <- err == nil && endsHTTP(answer)
		return true
	}
}

// endsHTTP is whether no request can follow a on its connection: it switches protocols, or its body ends with the connection.
// dockerd answers so when it takes a stream over for a client that did not ask for an upgrade.
func endsHTTP(a *http.Response) bool {
	if a.StatusCode == http.StatusSwitchingProtocols {
		return true
	}
	return a.ContentLength == -1 && len(a.TransferEncoding) == 0 && a.Request.Method != http.MethodHead
}
