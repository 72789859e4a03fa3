package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/config"
	"github.com/coracle-engine/coracle/host/lock"
	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/host/server"
	"github.com/coracle-engine/coracle/host/socket"
)

// fakeCoracled is a host process without a virtual machine: it tells the events of a start, answers the API socket with
// host/server, and serves a Docker socket that knows its version and shells that know a few commands. FAKE_FAIL makes its
// start fail with that code, FAKE_DOCTOR=bad its doctor; FAKE_HANG keeps it from becoming ready, FAKE_MUTE from answering.
func fakeCoracled() {
	var err error
	home := os.Getenv("CORACLE_HOME")
	switch verb, args := os.Args[1], os.Args[2:]; verb {
	case "run":
		err = fakeRun(home, args)
	case "doctor":
		checks := []api.Check{
			{Name: "qemu", Level: api.CheckOK, Detail: "QEMU 7.2.22"},
			{Name: "accelerator", Level: api.CheckWarn, Detail: "tcg, since /dev/kvm is missing", Hint: "use a computer with virtualisation"},
		}
		if os.Getenv("FAKE_DOCTOR") == "bad" {
			checks = append(checks, api.Check{Name: "image", Level: api.CheckFail, Detail: "no image is installed", Hint: "run `make images`", Code: api.CodeNoImage})
		}
		err = json.NewEncoder(os.Stdout).Encode(checks)
	case "config":
		err = fakeConfig(home, args[len(args)-1])
	case "delete":
		err = os.RemoveAll(filepath.Join(paths.Machines(home), args[len(args)-1]))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// fakeFile is host/config's own file of settings, on a host of 8 CPUs.
func fakeFile(home string, m paths.Machine) *config.File {
	user, _ := os.UserHomeDir()
	return &config.File{Machine: m.Name, Path: m.Config(), Disk: m.DataDisk(), Host: config.Host{CPUs: 8, Memory: 16 << 30, Home: user, Coracle: home}}
}

// fakeConfig is `coracled config`, as host/api's Configure calls it.
func fakeConfig(home, name string) error {
	out, err := func() (out api.Configuration, err error) {
		m, err := paths.ForMachine(home, name)
		if err != nil {
			return out, err
		}
		var ch api.Change
		if err := json.NewDecoder(os.Stdin).Decode(&ch); err != nil {
			return out, err
		}
		if _, err := os.Stat(m.Dir); err != nil && name != paths.DefaultMachine {
			return out, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no machine %q", name), Hint: "make it"}
		}
		if ch.Verb != "" {
			if err := os.MkdirAll(m.Dir, 0o700); err != nil {
				return out, err
			}
		}
		return fakeFile(home, m).Configure(context.Background(), nil, ch)
	}()
	if err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(err)
		os.Exit(1)
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// fakeMachine is what fakeCoracled serves.
type fakeMachine struct {
	paths.Machine
	since time.Time
	file  *config.File
	ended chan struct{} // closed when the machine has stopped
	bye   func() error  // closes the Docker socket

	mu     sync.Mutex
	status api.Status
	events []api.Event
	news   chan struct{} // closed and renewed with every event
	stop   sync.Once
}

func fakeRun(home string, args []string) error {
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	since := f.Int64("since", 0, "")
	withContext := f.Bool("context", true, "")
	cpus, memory, disk := f.Int("cpus", 0, ""), f.Int64("memory", 0, ""), f.Int64("disk", 0, "")
	arch := f.String("arch", "", "")
	var shares []string
	f.Func("share", "", func(text string) error {
		shares = append(shares, text)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return err
	}
	m, err := paths.ForMachine(home, f.Arg(0))
	if err != nil {
		return err
	}
	file := fakeFile(home, m)
	settings := config.Default(file.Host)
	settings.CPUs = 2
	if settings, err = config.Load(m.Config(), settings); err == nil {
		settings, err = config.AddShares(settings, shares)
	}
	if err == nil && len(shares) > 0 {
		err = config.Check(settings, file.Host)
	}
	settings.CPUs, settings.Memory, settings.Disk = cmp.Or(*cpus, settings.CPUs), cmp.Or(*memory, settings.Memory), cmp.Or(*disk, settings.Disk)
	settings.Arch = cmp.Or(*arch, settings.Arch)
	fm := &fakeMachine{Machine: m, file: file, since: time.Unix(0, *since), ended: make(chan struct{}), news: make(chan struct{})}
	fm.status = api.Status{
		Name: m.Name, State: api.Starting, PID: os.Getpid(), Driver: "qemu", Accelerator: "tcg",
		Note: "/dev/kvm is missing, so the guest runs slowly", DiskUsed: 1234567890, DockerSocket: m.DockerSocket(),
		Settings: settings,
		Image:    api.Image{Version: "2026.11.1", Digest: "sha256:0123456789abcdef0123", Kernel: "6.12.57-cloud"},
		Started:  time.Now(),
	}
	if *withContext {
		fm.status.Context = paths.ContextName(m.Name)
	}
	if err != nil {
		var e *api.Error
		errors.As(err, &e)
		fm.tell(api.Event{Kind: api.EventError, Error: e})
		return nil
	}
	if code := os.Getenv("FAKE_FAIL"); code != "" {
		fm.tell(api.Event{Kind: api.EventProgress, Text: "checking the image"})
		fm.tell(api.Event{Kind: api.EventError, Error: &api.Error{Code: api.Code(code), Message: "cannot do it: " + code, Hint: "try something else"}})
		return nil
	}
	return fm.run()
}

func (m *fakeMachine) run() error {
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return err
	}
	held, err := lock.Take(context.Background(), m.Lock(), 0)
	if errors.Is(err, lock.ErrHeld) {
		m.waitForFile("api.sock")
		m.tell(api.Event{Kind: api.EventError, Error: api.Errorf(api.CodeRunning, "another one was quicker")})
		return nil
	}
	if err != nil {
		return err
	}
	defer held.Close()
	log := "level=INFO msg=\"machine starts\"\n"
	console := "[    0.000000] Linux version 6.12\r\n\x1b]0;evil\x07[    0.1] up\n"
	if err := errors.Join(os.WriteFile(m.Log(), []byte(log), 0o600), os.WriteFile(m.Console(), []byte(console), 0o600)); err != nil {
		return err
	}
	if err := config.Save(m.Config(), m.status.Settings); err != nil {
		return err
	}
	apiSocket, err := socket.Listen(m.APISocket())
	if err != nil {
		return err
	}
	dockerSocket, err := socket.Listen(m.DockerSocket())
	if err != nil {
		return err
	}
	engine := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"Version":"29.9.9\u001b[2J"}`)
	})}
	m.bye = engine.Close
	go engine.Serve(dockerSocket)
	srv := server.New(m, slog.New(slog.DiscardHandler))
	if os.Getenv("FAKE_MUTE") == "" {
		go srv.Serve(apiSocket)
	}
	m.start()
	if os.Getenv("FAKE_MUTE") != "" {
		defer apiSocket.Close()
		m.waitForFile("end")
		return nil
	}
	select {
	case <-m.ended:
	case <-time.After(time.Minute): // a test that forgot to stop it
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}

// waitForFile waits until the machine has that file.
func (m *fakeMachine) waitForFile(name string) {
	for range 2000 {
		if _, err := os.Stat(filepath.Join(m.Dir, name)); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *fakeMachine) start() {
	ms := time.Millisecond
	m.tell(api.Event{Kind: api.EventState, State: api.Starting})
	m.tell(api.Event{Kind: api.EventProgress, Text: "checking the image"})
	m.tell(api.Event{Kind: api.EventStep, Step: &api.Step{Name: "check image", Where: "host", Start: 10 * ms, End: 110 * ms}})
	m.tell(api.Event{Kind: api.EventProgress, Text: "waiting for Docker to answer\x1b[2J"})
	if os.Getenv("FAKE_HANG") != "" {
		return
	}
	m.tell(api.Event{Kind: api.EventStep, Step: &api.Step{Name: "kernel", Where: "guest", Start: 110 * ms, End: 610 * ms}})
	m.mu.Lock()
	m.status.Ready = time.Now()
	m.status.Services = []api.Service{{Name: "containerd", State: "ready"}, {Name: "dockerd", State: "ready", Restarts: 1, Detail: "killed:\nsignal 9"}}
	m.mu.Unlock()
	m.tell(api.Event{Kind: api.EventState, State: api.Running})
}

// tell makes e known on standard output and to watchers.
func (m *fakeMachine) tell(e api.Event) {
	e.Time = time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status.State == api.Starting { // nobody reads the pipe after the start
		line, _ := json.Marshal(e)
		fmt.Printf("%s\n", line)
	}
	if e.Kind == api.EventState {
		m.status.State = e.State
	}
	m.events = append(m.events, e)
	close(m.news)
	m.news = make(chan struct{})
}

func (m *fakeMachine) Status() api.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.status
	for _, sh := range st.Settings.Shares {
		shared := api.Shared{Share: sh}
		if _, err := os.Stat(sh.Path); err != nil {
			shared.Error = "there is no such directory"
		}
		st.Shared = append(st.Shared, shared)
	}
	if os.Getenv("FAKE_PORTS") != "" {
		st.Published = []api.Published{
			{Protocol: "tcp", Address: st.Settings.Ports.Address, Port: 8080, To: "172.17.0.2:80"},
			{Protocol: "udp", Address: "::1", Port: 53, To: "172.17.0.2:53", Error: "already in use by named\x1b[2J"},
		}
	}
	return st
}

// Apply makes s the settings in force, unless the engine is to refuse them.
func (m *fakeMachine) Apply(_ context.Context, s api.Settings) error {
	if strings.Contains(string(s.Engine), "refuse-me") {
		return &api.Error{Code: api.CodeEngine, Message: "the Docker Engine refuses its settings: refuse-me", Hint: "see `coracle logs`"}
	}
	if strings.Contains(string(s.Engine), "mtu") {
		return &api.Error{Code: api.CodeRestart, Message: "docker does not change mtu while containers run"}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Settings = s
	return nil
}

func (m *fakeMachine) Configure(ctx context.Context, ch api.Change) (api.Configuration, error) {
	return m.file.Configure(ctx, m, ch)
}

func (m *fakeMachine) Watch(ctx context.Context, f func(api.Event) error) error {
	for told := 0; ; {
		m.mu.Lock()
		events, news := m.events[told:], m.news
		m.mu.Unlock()
		for _, e := range events {
			if err := f(e); err != nil {
				return err
			}
		}
		told += len(events)
		if len(events) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.ended:
			return nil
		case <-news:
		}
	}
}

func (m *fakeMachine) Stop(bool) {
	m.stop.Do(func() {
		m.tell(api.Event{Kind: api.EventState, State: api.Stopped})
		last, _ := json.Marshal(m.Status())
		_ = errors.Join(m.bye(), os.WriteFile(m.Last(), last, 0o600))
		close(m.ended)
	})
}

func (m *fakeMachine) DialShell(context.Context) (net.Conn, error) {
	host, guest := net.Pipe()
	go func() {
		defer guest.Close()
		if err := fakeShell(guest); err != nil {
			_ = guestapi.WriteFrame(guest, guestapi.FrameError, []byte(err.Error()))
		}
	}()
	return host, nil
}

// fakeShell is a guest that knows `exit N`, `cat`, `tty`, and of a login shell the words "exit N".
func fakeShell(conn net.Conn) error {
	_, payload, err := guestapi.ReadFrame(conn)
	if err != nil {
		return err
	}
	var req guestapi.ShellRequest
	if err := json.Unmarshal(payload, &req); err != nil {
		return err
	}
	say := func(text string) { _ = guestapi.WriteFrame(conn, guestapi.FrameData, []byte(text)) }
	status := 0
	switch command := append(req.Command, "", "")[:2]; command[0] {
	case "exit":
		_ = guestapi.WriteFrame(conn, guestapi.FrameStderr, []byte("leaving\n"))
		fmt.Sscan(command[1], &status)
	case "tty":
		say(fmt.Sprintf("tty %t %s %dx%d\n", req.TTY, req.Term, req.Size.Cols, req.Size.Rows))
	case "", "cat":
		if command[0] == "" {
			say(fmt.Sprintf("root shell, tty %t\r\n", req.TTY))
		}
		for {
			t, payload, err := guestapi.ReadFrame(conn)
			if err != nil {
				return err
			}
			say(string(payload))
			if t == guestapi.FrameEOF || req.TTY && strings.ContainsAny(string(payload), "\r\n") {
				break
			}
		}
	default:
		return fmt.Errorf("%s: no such program", command[0])
	}
	return guestapi.WriteFrame(conn, guestapi.FrameExit, []byte{byte(status)})
}

// fakeDocker tells how it was run.
func fakeDocker() {
	fmt.Printf("docker %q\n", os.Args[1:])
	for _, key := range []string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CONFIG"} {
		if v, ok := os.LookupEnv(key); ok {
			fmt.Printf("%s=%s\n", key, v)
		}
	}
	if len(os.Args) > 1 && os.Args[1] == "fail" {
		os.Exit(42)
	}
	if len(os.Args) > 1 && os.Args[1] == "cat" {
		_, _ = io.Copy(os.Stdout, os.Stdin)
	}
}

// stopAll ends the fake host processes that a story left under home.
func stopAll(home string) {
	entries, _ := os.ReadDir(paths.Machines(home))
	for _, e := range entries {
		cmd := exec.Command("coracle", "stop", "--force", e.Name())
		cmd.Env = append(os.Environ(), "CORACLE_HOME="+home)
		_ = cmd.Run()
	}
}
