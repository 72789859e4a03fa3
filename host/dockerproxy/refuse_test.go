package dockerproxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/host/dockerproxy"
)

const reason = `machine "work" failed: the "guest" gave no sign` + "\n<within> 3m0s\x1b"

func noEngine(context.Context) (net.Conn, error) { return nil, errors.New(reason) }

func clientOf(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}, Timeout: patience}
}

// TestNoEngine asks a proxy whose engine cannot be reached: the answer is the engine's form of an error.
func TestNoEngine(t *testing.T) {
	path := serve(t, noEngine)
	for _, test := range []struct {
		name, method, path string
		body               io.Reader
	}{
		{"ping", "GET", "/_ping", nil},
		{"head", "HEAD", "/_ping", nil},
		{"small body", "POST", "/v1.47/containers/create", strings.NewReader("{}")},
		{"upload", "POST", "/v1.47/build", noise(1, 32<<20)},
		{"chunked upload", "PUT", "/v1.47/containers/x/archive", io.MultiReader(noise(1, 1<<20))},
		{"upgrade", "POST", "/v1.47/containers/x/attach?stream=1", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequest(test.method, "http://docker"+test.path, test.body)
			if err != nil {
				t.Fatal(err)
			}
			if test.name == "upgrade" {
				req.Header.Set("Connection", "Upgrade")
				req.Header.Set("Upgrade", "tcp")
			}
			resp, err := clientOf(path).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			data, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Content-Type") != "application/json" {
				t.Errorf("answer is %s, %v", resp.Status, resp.Header)
			}
			if test.method == "HEAD" {
				return
			}
			var got struct{ Message string }
			if err := json.Unmarshal(data, &got); err != nil || got.Message != reason {
				t.Errorf("body is %q, error %v", data, err)
			}
		})
	}
}

// TestNoEngineRaw sends what is no request, and looks at the very bytes of an answer without a body.
func TestNoEngineRaw(t *testing.T) {
	path := serve(t, noEngine)
	for _, test := range []struct{ name, send, want string }{
		{"garbage", "\x16\x03\x01\x00\xff garbage\r\n\r\n", ""},
		{"endless head", "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 1<<20), ""},
		{"nothing", "", ""},
		{"HEAD", "HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n", "HTTP/1.1 503 Service Unavailable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := connect(t, path)
			go func() {
				io.WriteString(c, test.send)
				c.CloseWrite()
			}()
			got, _ := io.ReadAll(c) // it may end with a reset
			head, body, _ := strings.Cut(string(got), "\r\n\r\n")
			if !strings.HasPrefix(head, test.want) || test.want == "" && head != "" || body != "" {
				t.Errorf("answer is %q", got)
			}
		})
	}
}

// dockerCLI is the path of a docker CLI.
func dockerCLI(t *testing.T) string {
	t.Helper()
	docker, err := exec.LookPath("docker")
	if err != nil {
		if docker = os.Getenv("CORACLE_DOCKER"); docker == "" {
			t.Skip("no docker CLI: put one in PATH or name it in CORACLE_DOCKER")
		}
	}
	return docker
}

// TestDockerNotShared has the docker CLI, where there is one, name a path that the machine does not have: docker prints why.
func TestDockerNotShared(t *testing.T) {
	docker := dockerCLI(t)
	d := startDockerd(t)
	path := servePolicy(t, &dockerproxy.Shares{Machine: "work"}, d.dial)
	for _, args := range []string{
		"create -v /evil/dir:/x alpine", "run --rm --mount type=bind,src=/evil/dir,dst=/x alpine", "create -v /ok:/y -v /evil/dir:/x:ro alpine",
		"volume create -o type=none -o o=bind -o device=/evil/dir v",
		"create --mount type=volume,dst=/x,volume-opt=type=none,volume-opt=o=bind,volume-opt=device=/evil/dir alpine",
		"service create --no-resolve-image --detach --mount type=bind,src=/evil/dir,dst=/x alpine",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, docker, append([]string{"-H", "unix://" + path}, strings.Fields(args)...)...)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+t.TempDir())
		out, err := cmd.CombinedOutput()
		want := `/evil/dir is not shared with machine "work"; to share it: coracle config add shares /evil/dir`
		if strings.Contains(args, "/ok") {
			want = `/ok is not shared with machine "work"`
		}
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("docker %s: error %v, output %q", args, err, out)
		}
	}
	for _, r := range d.requests() {
		if strings.Contains(r.Body, "/evil") {
			t.Errorf("the engine got %q", r)
		}
	}
}

// TestDockerPrints has the docker CLI, where there is one, print why the machine cannot be reached.
func TestDockerPrints(t *testing.T) {
	docker := dockerCLI(t)
	path := serve(t, noEngine)
	for _, args := range [][]string{{"ps"}, {"run", "--rm", "x"}, {"load", "-i", "/proc/self/maps"}} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, docker, append([]string{"-H", "unix://" + path}, args...)...)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), `machine "work" failed: the "guest" gave no sign`) {
			t.Errorf("docker %s: error %v, output %q", strings.Join(args, " "), err, out)
		}
	}
}
