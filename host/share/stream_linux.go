package share

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/share/notify"
)

const (
	replayTime = 30 * time.Second // how long one operation may take in the guest, which may be busy
	redialMin  = 100 * time.Millisecond
	redialMax  = 5 * time.Second
	maxLine    = 64 << 10 // bytes of a line from the guest
)

// Replay has the guest repeat the host's changes until ctx ends, over streams that dial opens to guestapi.PortReplay, the
// greeting done. A stream that ends is opened again. While there is none, changes wait, and the guest is told to remember
// nothing for long. It may not be called twice at a time.
func (s *Server) Replay(ctx context.Context, dial func(context.Context) (net.Conn, error)) error {
	var done sync.WaitGroup
	for range s.replays.streams {
		done.Go(func() { s.keepStream(ctx, dial) })
	}
	done.Wait()
	return ctx.Err()
}

// keepStream keeps one stream.
func (s *Server) keepStream(ctx context.Context, dial func(context.Context) (net.Conn, error)) {
	for pause := redialMin; ctx.Err() == nil; pause = min(2*pause, redialMax) {
		conn, err := dial(ctx)
		if err == nil {
			start := time.Now()
			err = s.serveStream(ctx, conn)
			if time.Since(start) > redialMax {
				pause = redialMin
			}
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Debug("stream of file events ended", "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// serveStream looks into changes with one stream until it or ctx ends. It closes conn.
func (s *Server) serveStream(ctx context.Context, conn net.Conn) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	lines := bufio.NewReaderSize(conn, maxLine)
	var hello guestapi.Replayer
	_ = conn.SetReadDeadline(time.Now().Add(replayTime))
	if err := readLine(lines, &hello); err != nil {
		return fmt.Errorf("greet replayer: %w", err)
	}
	if hello.Thread <= 0 {
		return fmt.Errorf("replayer has the thread %d", hello.Thread)
	}
	_ = conn.SetReadDeadline(time.Time{})
	st := &stream{}
	s.replays.set(uint32(hello.Thread), st)
	defer s.replays.set(uint32(hello.Thread), nil)

	// The guest says nothing unasked: a byte, or the end, ends the stream, also while nothing is to be replayed.
	r := &replayer{conn: conn, answers: make(chan guestapi.Replayed), stream: st}
	var reading sync.WaitGroup
	reading.Go(func() { end(r.read(ctx, lines)) })
	defer reading.Wait()
	defer end(nil)
	for {
		c := s.changes.take(ctx)
		if c == nil {
			return context.Cause(ctx)
		}
		err := s.reconcile(ctx, r, c)
		s.changes.done(c)
		if err != nil {
			return err
		}
	}
}

// readLine reads a line of JSON into v.
func readLine(r *bufio.Reader, v any) error {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// replayer is the host's end of a stream.
type replayer struct {
	conn    net.Conn
	answers chan guestapi.Replayed
	stream  *stream
}

// read hands on the guest's answers until the stream ends, and returns why it did.
func (r *replayer) read(ctx context.Context, lines *bufio.Reader) error {
	for {
		var a guestapi.Replayed
		if err := readLine(lines, &a); err != nil {
			return fmt.Errorf("read replayed: %w", err)
		}
		select {
		case r.answers <- a:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// do has the guest make what e expects. The error is the stream's end; what the guest says went wrong is returned apart.
func (r *replayer) do(ctx context.Context, e *expectation) (trouble string, err error) {
	r.stream.expects.Store(e)
	defer r.stream.expects.Store(nil)
	ctx, cancel := context.WithTimeout(ctx, replayTime)
	defer cancel()
	var line bytes.Buffer
	if err := json.NewEncoder(&line).Encode(e.replay); err != nil {
		return "", fmt.Errorf("encode replay: %w", err)
	}
	_ = r.conn.SetWriteDeadline(time.Now().Add(replayTime))
	if _, err := r.conn.Write(line.Bytes()); err != nil {
		return "", fmt.Errorf("write replay: %w", err)
	}
	select {
	case a := <-r.answers:
		return a.Error, nil
	case <-ctx.Done():
		return "", fmt.Errorf("replay: %w", ctx.Err())
	}
}

// maxSteps bounds how many operations one change can need: what is replaced by another kind, renamed and then changed needs
// four.
const maxSteps = 8

// reconcile looks into a change, and the other end of it if it is a rename, until the guest knows all. The error is the
// stream's end: what the guest does not know then is looked into by another.
func (s *Server) reconcile(ctx context.Context, r *replayer, c *change) error {
	if c.whole {
		s.suspect(c.dir)
		return nil
	}
	both := []*change{c}
	if c.mate != nil {
		from, to := c, c.mate
		if from.to {
			from, to = to, from
		}
		both = []*change{from, to}
		if e := s.compareMove(from, to); e != nil {
			from.kinds, to.kinds = kind(notify.Created), kind(notify.Created) // whatever is left has come anew
			if err := s.replay(ctx, r, from, e); err != nil {
				s.changes.add(to.dir, to.name, to.kinds, to.isDir, 0)
				return err
			}
		}
	}
	for i, each := range both {
		if e := each.again; e != nil {
			each.again = nil
			if err := s.replay(ctx, r, each, e); err != nil {
				return err
			}
		}
		for range maxSteps {
			e := s.compare(each)
			if e == nil {
				break
			}
			if err := s.replay(ctx, r, each, e); err != nil {
				return err
			}
			each.kinds &= kind(notify.Created, notify.MovedTo) // the rest was told
		}
		if i == 0 && len(both) == 2 && both[0].dir == both[1].dir {
			continue
		}
		if err := s.replay(ctx, r, each, s.outdated(each.dir)); err != nil {
			return err
		}
	}
	return nil
}

// replay has the guest make e, which came of c.
func (s *Server) replay(ctx context.Context, r *replayer, c *change, e *expectation) error {
	if e == nil {
		return nil
	}
	trouble, err := r.do(ctx, e)
	if err != nil {
		s.changes.again(c, e)
		return err
	}
	if trouble == "" {
		return nil
	}
	s.log.Debug("file event was not replayed", "op", e.replay.Op, "path", string(e.replay.Path), "error", trouble)
	if !e.used.Load() && e.dir != nil && s.stillKnown(e) {
		e.dir.dir.doubtful.Store(true)
	}
	return nil
}

// stillKnown says whether the guest may hold for true what an operation that was not made should have changed: it made
// something that a share lost, and somebody looked at it before.
func (s *Server) stillKnown(e *expectation) bool {
	switch e.replay.Op {
	case guestapi.ReplayUnlink, guestapi.ReplayRmdir, guestapi.ReplayRename:
		return s.tree.holds(e.node)
	}
	return false
}
