package main

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/host/api"
)

// progress shows what is being waited for: on a terminal one live line per step with the time it takes, which stays with
// its final time when the next step begins; elsewhere a plain line as each step begins.
type progress struct {
	out   screen
	since time.Time // earlier events are history, of a start that somebody else began

	mu    sync.Mutex
	text  string // of the step under way; empty: none
	began time.Time

	stop    chan struct{}
	ending  sync.Once
	drawing sync.WaitGroup
}

const frame = 100 * time.Millisecond // between two drawings of the live line

// newProgress begins to draw on out. The caller ends it.
func newProgress(out screen, since time.Time) *progress {
	p := &progress{out: out, since: since, stop: make(chan struct{})}
	if out.tty {
		p.drawing.Go(p.animate)
	}
	return p
}

func (p *progress) animate() {
	tick := time.NewTicker(frame)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.mu.Lock()
			p.draw("")
			p.mu.Unlock()
		}
	}
}

// event takes one event of a machine.
func (p *progress) event(e api.Event) {
	switch {
	case e.Kind == api.EventProgress && e.Text != "":
		p.step(e.Text, e.Time)
	case e.Kind == api.EventState && e.State == api.Running && e.Time.Before(p.since):
		p.forget()
	}
}

// forget drops the step under way: it was over before we looked.
func (p *progress) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.text != "" && p.out.tty {
		p.out.printf("\r\x1b[K")
	}
	p.text = ""
}

// step says what is waited for from at on.
func (p *progress) step(text string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text = printable(strings.ReplaceAll(text, "\n", " ")); text == p.text {
		return
	}
	if p.out.tty {
		p.finish(at)
	} else if !at.Before(p.since) {
		p.out.printf("%s\n", text)
	}
	p.text, p.began = text, at
	if !at.Before(p.since) {
		p.draw("")
	}
}

// end leaves the last step with its time, or with what went wrong marked, and draws no more. It may be called twice.
func (p *progress) end(err error) {
	p.mu.Lock()
	if p.text != "" && err != nil {
		p.draw(p.out.paint(red, "✗"))
		p.newline()
	} else {
		p.finish(time.Now())
	}
	p.mu.Unlock()
	p.ending.Do(func() { close(p.stop) })
	p.drawing.Wait()
}

// finish leaves the line of the step that ended at. A step that ended before we looked leaves none.
func (p *progress) finish(at time.Time) {
	if p.text == "" {
		return
	}
	if at.Before(p.since) {
		p.text = ""
		return
	}
	p.draw(p.out.paint(green, "✓"))
	p.newline()
}

func (p *progress) newline() {
	if p.out.tty {
		p.out.printf("\n")
	}
	p.text = ""
}

var spinner = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

func (p *progress) draw(mark string) {
	if p.text == "" || !p.out.tty {
		return
	}
	took := max(time.Since(p.began), 0)
	if mark == "" {
		mark = p.out.paint(cyan, string(spinner[int(took/frame)%len(spinner)]))
	}
	text := []rune(p.text)
	if room := p.out.width() - 12; len(text) > room {
		text = append(text[:max(room-1, 0)], '…')
	}
	p.out.printf("\r%s %s %s\x1b[K", mark, string(text), p.out.paint(faint, fmt.Sprintf("%.1f s", took.Seconds())))
}
