//go:build linux

package watch

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// netlink is a socket of netlink (man 7 netlink) on which one request is answered at a time.
type netlink struct {
	fd  int
	seq uint32
}

func dialNetlink(protocol int) (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind netlink: %w", err)
	}
	return &netlink{fd: fd}, nil
}

func (n *netlink) close() { unix.Close(n.fd) }

// call sends a request and calls f with the body of each answer but the last, which is the kernel's word on the request: an
// acknowledgement or the end of a dump.
func (n *netlink) call(kind, flags uint16, body []byte, f func(body []byte) error) error {
	n.seq++
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(b[0:], uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], n.seq)
	if err := unix.Sendto(n.fd, append(b, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for buf := make([]byte, 64<<10); ; {
		size, _, err := unix.Recvfrom(n.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := parseMessages(buf[:size], n.seq, f); done || err != nil {
			return err
		}
	}
}

// parseMessages hands the bodies of b's messages that belong to request seq to f; done says that the last was there.
func parseMessages(b []byte, seq uint32, f func(body []byte) error) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, errors.New("parse netlink answer: bad length")
		}
		kind, body := binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size]
		switch {
		case binary.NativeEndian.Uint32(b[8:]) != seq:
		case kind == unix.NLMSG_DONE:
			return true, nil
		case kind == unix.NLMSG_ERROR:
			if len(body) < 4 {
				return true, errors.New("parse netlink answer: short error")
			}
			if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
				return true, unix.Errno(-code)
			}
			return true, nil
		case f != nil:
			if err := f(body); err != nil {
				return true, err
			}
		}
		b = b[min(align(size), len(b)):]
	}
	return false, nil
}

func align(n int) int { return (n + 3) &^ 3 }

// attribute appends one: length, type, value, padding.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

// attributes calls f with each attribute in b.
func attributes(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[4:size])
		b = b[min(align(size), len(b)):]
	}
}

func number(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// routeBack has what carries markOurs delivered to this guest, whatever its address: a rule that leads to a table of its own,
// and in that a route that makes all addresses local (rtnetlink(7); struct fib_rule_hdr and struct rtmsg are alike).
func routeBack() error {
	n, err := dialNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer n.close()
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		route := make([]byte, unix.SizeofRtMsg)
		route[0] = family
		route[4] = unix.RT_TABLE_UNSPEC
		route[5] = unix.RTPROT_BOOT
		route[6] = unix.RT_SCOPE_HOST
		route[7] = unix.RTN_LOCAL
		route = attribute(route, unix.RTA_TABLE, number(ruleTable))
		route = attribute(route, unix.RTA_OIF, number(1)) // lo is the first link of every network
		err := n.call(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, route, nil)
		if err != nil && family == unix.AF_INET6 {
			return nil // a guest without IPv6 has no such clients
		}
		if err != nil {
			return fmt.Errorf("make route of client addresses: %w", err)
		}
		rule := make([]byte, unix.SizeofRtMsg)
		rule[0] = family
		rule[7] = unix.FR_ACT_TO_TBL
		rule = attribute(rule, unix.FRA_PRIORITY, number(rulePref))
		rule = attribute(rule, unix.FRA_FWMARK, number(markOurs))
		rule = attribute(rule, unix.FRA_FWMASK, number(0xffffffff))
		rule = attribute(rule, unix.FRA_TABLE, number(ruleTable))
		err = n.call(unix.RTM_NEWRULE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, rule, nil)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make routing rule of client addresses: %w", err)
		}
	}
	return nil
}
