//go:build linux

package relay

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"time"
)

// refusalTime bounds how long a refused peer may take to send its request and to read the answer.
const refusalTime = 10 * time.Second

// Refuse answers conn's first HTTP request as dockerd would: 503 and a JSON object with the message. It closes conn.
func Refuse(conn interface {
	net.Conn
	CloseWrite() error
}, message string) error {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(refusalTime)); err != nil {
		return err
	}
	// The request is read first: a client drops an answer that came before it asked.
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]string{"message": message})
	if err != nil {
		return err
	}
	resp := http.Response{
		StatusCode: http.StatusServiceUnavailable, ProtoMajor: 1, ProtoMinor: 1, Request: req, Close: true,
		Header: http.Header{"Content-Type": {"application/json"}},
		Body:   io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}
	if err := resp.Write(conn); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	// What the client still sends is taken, lest the answer be lost with the connection's reset.
	_, _ = io.Copy(io.Discard, conn)
	return nil
}
