package dockerproxy

import (
	"errors"
	"net/http"
)

// framing finds the end of one request's body in a stream of bytes (RFC 9112, sections 6 and 7). It is as strict as dockerd's
// parser or stricter: what it lets through, both see alike.
type framing struct {
	state chunkState
	left  uint64 // of a body or chunk whose length is known
	digit int    // of the size that is being read
	line  int    // bytes of the trailer's line, and of the whole trailer
	total int
}

type chunkState int

const (
	bodyOver chunkState = iota
	bodyLength
	chunkSize
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerLine
	trailerLF
)

var (
	errChunk   = errors.New("malformed chunked body")
	errTrailer = errors.New("trailer is too long")
)

// maxTrailer is what dockerd takes, whose reader must see a trailer in one buffer.
const maxTrailer = 4 << 10

func framingOf(r *http.Request) framing {
	switch {
	case len(r.TransferEncoding) > 0:
		return framing{state: chunkSize}
	case r.ContentLength > 0:
		return framing{state: bodyLength, left: uint64(r.ContentLength)}
	}
	return framing{}
}

func (f *framing) over() bool { return f.state == bodyOver }

// take returns how many of b's first bytes belong to the body. It takes fewer than all only at the body's end.
func (f *framing) take(b []byte) (int, error) {
	for i := 0; i < len(b); {
		switch f.state {
		case bodyOver:
			return i, nil
		case bodyLength, chunkData:
			n := min(f.left, uint64(len(b)-i))
			f.left -= n
			i += int(n)
			if f.left == 0 {
				f.state = map[bool]chunkState{true: bodyOver, false: chunkDataCR}[f.state == bodyLength]
			}
		default:
			if err := f.step(b[i]); err != nil {
				return i, err
			}
			i++
		}
	}
	return len(b), nil
}

// step takes one byte between the data of chunks.
func (f *framing) step(c byte) error {
	switch f.state {
	case chunkSize:
		if c == '\r' && f.digit > 0 {
			f.state = chunkSizeLF
			return nil
		}
		v, ok := hex(c)
		if !ok || f.digit == 16 || f.left>>59 != 0 { // no extension either: nothing sends any
			return errChunk
		}
		f.left, f.digit = f.left<<4|v, f.digit+1
		return nil
	case chunkDataCR:
		return f.expect(c, '\r', chunkDataLF)
	case chunkDataLF:
		f.digit = 0
		return f.expect(c, '\n', chunkSize)
	case chunkSizeLF:
		if f.left > 0 {
			return f.expect(c, '\n', chunkData)
		}
		return f.expect(c, '\n', trailerLine)
	case trailerLF:
		if f.line == 0 {
			return f.expect(c, '\n', bodyOver)
		}
		f.line = 0
		return f.expect(c, '\n', trailerLine)
	default: // trailerLine
		if f.total++; f.total > maxTrailer-4 {
			return errTrailer
		}
		switch {
		case c == '\r':
			f.state = trailerLF
			return nil
		case c == '\n' || c == 0 || f.line == 0 && (c == ' ' || c == '\t'):
			return errChunk
		}
		f.line++
		return nil
	}
}

func (f *framing) expect(c, want byte, then chunkState) error {
	if c != want {
		return errChunk
	}
	f.state = then
	return nil
}

func hex(c byte) (uint64, bool) {
	switch {
	case '0' <= c && c <= '9':
		return uint64(c - '0'), true
	case 'a' <= c && c <= 'f':
		return uint64(c-'a') + 10, true
	case 'A' <= c && c <= 'F':
		return uint64(c-'A') + 10, true
	}
	return 0, false
}
