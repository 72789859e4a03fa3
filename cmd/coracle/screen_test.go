package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", path, diff)
	}
}

func TestTables(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	running := api.Status{
		Name: "default", State: api.Running, PID: 7, Driver: "qemu", Accelerator: "kvm", DiskUsed: 1 << 31,
		Settings: api.Settings{CPUs: 4, Memory: 8 << 30, Disk: 64 << 30}, DockerSocket: "/h/d.sock", Context: "coracle",
		Image: api.Image{Version: "1", Digest: "sha256:abcdef", Kernel: "6.12"}, Ready: now.Add(-50 * time.Hour),
		Services: []api.Service{{Name: "containerd", State: "ready"}, {Name: "evil\x1b[2J", State: "failed", Restarts: 2, Detail: "a\nb"}},
	}
	failed := api.Status{Name: "work", State: api.Failed, Error: &api.Error{Message: "image is\ndamaged", Hint: "install it again"}}
	for _, look := range []struct {
		name  string
		color bool
	}{{"plain", false}, {"color", true}} {
		t.Run(look.name, func(t *testing.T) {
			var buf bytes.Buffer
			a := &app{stdout: screen{Writer: &buf, fd: -1, tty: look.color, color: look.color}}
			a.stdout.table(a.listRows([]api.Status{running, failed, {Name: "new", State: api.Stopped}}, now))
			a.stdout.table(a.statusRows(running, now))
			a.stdout.table(a.statusRows(failed, now))
			golden(t, "tables-"+look.name+".golden", buf.String())
		})
	}
}

func TestTimeline(t *testing.T) {
	ms := time.Millisecond
	steps := []api.Step{
		{Name: "kernel", Where: "guest", Start: 300 * ms, End: 1500 * ms},
		{Name: "check image", Where: "host", Start: 20 * ms, End: 250 * ms},
		{Name: "dockerd", Where: "guest", Start: 1600 * ms, End: 4 * time.Second},
		{Name: "containerd", Where: "guest", Start: 1600 * ms, End: 2 * time.Second},
		{Name: "instant", Where: "host", Start: 4 * time.Second, End: 4 * time.Second},
		{Name: "backwards\x1b", Where: "guest", Start: 500 * ms, End: -time.Second},
	}
	for _, tty := range []bool{false, true} {
		var buf bytes.Buffer
		timeline(screen{Writer: &buf, tty: tty}, steps)
		golden(t, map[bool]string{false: "timeline-plain.golden", true: "timeline-bars.golden"}[tty], buf.String())
	}
	var buf bytes.Buffer
	timeline(screen{Writer: &buf, tty: true}, []api.Step{{Name: "nothing", Where: "host"}})
	if !strings.Contains(buf.String(), "nothing") {
		t.Errorf("a start of no time: %q", buf.String())
	}
}

func TestBar(t *testing.T) {
	for _, s := range []api.Step{{Start: -1 << 62, End: 1<<63 - 1}, {Start: 1<<63 - 1, End: -1}, {Start: 10, End: 10}, {Start: 9, End: 3}} {
		for _, total := range []time.Duration{1, 10, 1<<63 - 1} {
			if n := len([]rune(bar(s, total))); n != barWidth {
				t.Errorf("bar of %v in %d is %d long", s, total, n)
			}
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59 * time.Second: "59 s", 61 * time.Second: "1 min 1 s",
		7384 * time.Second: "2 h 3 min", 50 * time.Hour: "2 d 2 h",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %q: want %q", d, got, want)
		}
	}
}

// TestProgress: what is done keeps its line, what was over before we looked leaves none, and what failed is marked.
func TestProgress(t *testing.T) {
	var buf lockedBuffer
	since := time.Now()
	p := newProgress(screen{Writer: &buf, fd: -1, tty: true}, since)
	p.event(api.Event{Kind: api.EventProgress, Text: "old news", Time: since.Add(-time.Hour)})
	p.event(api.Event{Kind: api.EventState, State: api.Running, Time: since.Add(-time.Minute)})
	p.event(api.Event{Kind: api.EventProgress, Text: "checking", Time: time.Now()})
	p.event(api.Event{Kind: api.EventProgress, Text: "booting\x1b[2J " + strings.Repeat("x", 200), Time: time.Now()})
	for range 500 { // the live line is drawn again, by itself
		if strings.Count(buf.String(), "booting") > 1 {
			break
		}
		time.Sleep(frame / 10)
	}
	p.end(os.ErrDeadlineExceeded)
	p.end(nil)
	var final []string
	for line := range strings.SplitSeq(strings.TrimSuffix(buf.String(), "\n"), "\n") {
		parts := strings.Split(line, "\r")
		last := strings.TrimSuffix(parts[len(parts)-1], "\x1b[K")
		if strings.Contains(last, "\x1b") || len([]rune(last)) > 80 {
			t.Errorf("line %q commands the terminal or does not fit it", last)
		}
		final = append(final, strings.Join(strings.Fields(last)[:2], " "))
	}
	if diff := cmp.Diff([]string{"✓ checking", "✗ booting\uFFFD[2J"}, final); diff != "" {
		t.Errorf("lines that stay (-want +got):\n%s\n%q", diff, buf.String())
	}
	if n := strings.Count(buf.String(), "booting"); n < 3 {
		t.Errorf("the live line was drawn %d times", n)
	}
}

func TestTamed(t *testing.T) {
	var buf bytes.Buffer
	in := "plain\r\nsome \x1b[31mred\x07\ttab\x7f \u009b2J ünïcode\rback"
	n, err := tamed{&buf}.Write([]byte(in))
	if want := "plain\nsome ^[[31mred^G\ttab^? \x9b2J ünïcode^Mback"; n != len(in) || err != nil || buf.String() != want {
		t.Errorf("got %d, %v, %q: want %q", n, err, buf.String(), want)
	}
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
