package api

import (
	"encoding/binary"
	"fmt"
	"io"
)

// FrameType says what a frame of a shell stream carries. To the guest go FrameOpen (first, a ShellRequest as JSON),
// FrameData (the terminal's or standard input), FrameEOF (end of standard input) and FrameResize (a Size as JSON); from
// the guest come FrameData (the terminal's or standard output), FrameStderr, and last FrameExit (one byte: the exit
// status, 128 + signal where one killed it) or FrameError (text: why no process could be started).
type FrameType byte

// The frame types.
const (
	FrameOpen FrameType = iota + 1
	FrameData
	FrameStderr
	FrameEOF
	FrameResize
	FrameExit
	FrameError
)

// MaxFrame is the most a frame's payload may hold, in bytes.
const MaxFrame = 64 << 10

// WriteFrame writes one frame in one Write: a type byte, the payload's length as 4 bytes big-endian, the payload.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("write frame of %d bytes: at most %d", len(payload), MaxFrame)
	}
	buf := make([]byte, 5+len(payload))
	buf[0] = byte(t)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(payload)))
	copy(buf[5:], payload)
	_, err := w.Write(buf)
	return err
}

// ReadFrame reads one frame. It returns io.EOF at a frame's border and io.ErrUnexpectedEOF within one.
func ReadFrame(r io.Reader) (FrameType, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("read frame of %d bytes: at most %d", n, MaxFrame)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return FrameType(head[0]), payload, nil
}
