//go:build linux

package watch

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/relay"
	"golang.org/x/sys/unix"
)

// The descriptors that dockerd gives a docker-proxy (moby, cmd/docker-proxy): where it says that it is ready ("0\n") or why
// not ("1\n" and the error), and a socket that is bound and listens.
const (
	reportFD = 3
	listenFD = 4
)

// proxyOptions are docker-proxy's arguments as dockerd spells them.
type proxyOptions struct {
	forward  api.Forward
	inherits bool // the listening socket is at listenFD
	version  bool
}

func parseProxy(args []string) (proxyOptions, error) {
	var o proxyOptions
	var hostIP, containerIP string
	var hostPort, containerPort uint
	set := flag.NewFlagSet("docker-proxy", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&o.forward.Protocol, "proto", "tcp", "")
	set.StringVar(&hostIP, "host-ip", "0.0.0.0", "")
	set.UintVar(&hostPort, "host-port", 0, "")
	set.StringVar(&containerIP, "container-ip", "", "")
	set.UintVar(&containerPort, "container-port", 0, "")
	set.BoolVar(&o.inherits, "use-listen-fd", false, "")
	set.BoolVar(&o.version, "version", false, "")
	set.BoolVar(&o.version, "v", false, "")
	if err := set.Parse(args); err != nil || o.version {
		return o, err
	}
	host, err := netip.ParseAddr(hostIP)
	if err != nil {
		return o, fmt.Errorf("read -host-ip: %w", err)
	}
	to, err := netip.ParseAddrPort(net.JoinHostPort(containerIP, strconv.FormatUint(uint64(containerPort), 10)))
	if err != nil {
		return o, fmt.Errorf("read the container's address: %w", err)
	}
	if hostPort == 0 || hostPort > 65535 || to.Port() == 0 {
		return o, errors.New("port 0 cannot be published")
	}
	o.forward.Address, o.forward.Port, o.forward.To = host.Unmap().String(), uint16(hostPort), to.String()
	switch {
	case o.forward.Protocol == "sctp":
		return o, errors.New("SCTP ports cannot be published from a virtual machine; TCP and UDP can")
	case o.forward.Protocol != "tcp" && o.forward.Protocol != "udp":
		return o, fmt.Errorf("protocol %q cannot be published", o.forward.Protocol)
	case !o.inherits:
		return o, errors.New("no listening socket was given: this program serves the dockerd that it came with")
	}
	return o, nil
}

// Proxy is the docker-proxy program: dockerd starts one for each published port. It has the host open the port, tells dockerd
// what became of it, and then does what docker-proxy does in the guest: it carries connections that containers and the guest
// itself make to the port. It returns the exit status when it is told to end.
func Proxy(args []string) int { return proxy(SocketPath, args) }

func proxy(socket string, args []string) int {
	runtime.GOMAXPROCS(1) // there are as many of these as published ports
	debug.SetGCPercent(25)
	unix.CloseOnExec(reportFD)
	o, err := parseProxy(args)
	if o.version {
		fmt.Println("docker-proxy of Coracle")
		return 0
	}
	report := os.NewFile(reportFD, "report")
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	var agent net.Conn
	if err == nil {
		agent, err = ask(ctx, socket, o.forward)
	}
	var serve func(context.Context) error
	if err == nil {
		serve, err = o.server(listenFD)
	}
	if err != nil {
		fmt.Fprintf(report, "1\n%s", err)
		report.Close()
		return 1
	}
	fmt.Fprint(report, "0\n")
	report.Close()
	debug.FreeOSMemory() // what the start took
	ctx, cancel := context.WithCancel(ctx)
	var gone sync.WaitGroup
	gone.Go(func() { // the agent closes when it ends, and the machine with it
		_, _ = agent.Read(make([]byte, 1))
		cancel()
	})
	_ = serve(ctx)
	agent.Close()
	gone.Wait()
	return 0
}

// ask has the agent at path publish f. The forward lives as long as the connection.
func ask(ctx context.Context, path string, f api.Forward) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: askTime}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("reach the machine's agent: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var a answer
	if err = conn.SetDeadline(time.Now().Add(hostTime + time.Second)); err == nil {
		err = json.NewEncoder(conn).Encode(f)
	}
	if err == nil {
		err = json.NewDecoder(io.LimitReader(conn, 64<<10)).Decode(&a)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	switch {
	case err != nil:
		err = fmt.Errorf("ask the machine's agent: %w", err)
	case a.Error != "":
		err = errors.New(a.Error)
	default:
		return conn, nil
	}
	conn.Close()
	return nil, err
}

// server makes what serves the socket at fd until its context ends.
func (o proxyOptions) server(fd int) (func(context.Context) error, error) {
	f := os.NewFile(uintptr(fd), "listen")
	defer f.Close()
	if o.forward.Protocol == "tcp" {
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("use the listening socket: %w", err)
		}
		return func(ctx context.Context) error { return proxyTCP(ctx, l, o.forward.To) }, nil
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("use the bound socket: %w", err)
	}
	udp, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, errors.New("use the bound socket: it is not UDP's")
	}
	return func(ctx context.Context) error { return proxyUDP(ctx, udp, o.forward.To) }, nil
}

// proxyConns bounds the connections that one proxy carries.
const proxyConns = 1024

// proxyTCP carries each connection of l to the address to until ctx ends.
func proxyTCP(ctx context.Context, l net.Listener, to string) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	slots := make(chan struct{}, proxyConns)
	for {
		conn, err := l.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) {
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
			}
		}
		if err != nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return ctx.Err()
		}
		wg.Go(func() {
			defer func() { <-slots }()
			client := target{conn.(*net.TCPConn)}
			server, err := (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "tcp", to)
			if err != nil {
				client.Break()
				return
			}
			_ = relay.Pipe(ctx, client, target{server.(*net.TCPConn)})
		})
	}
}
