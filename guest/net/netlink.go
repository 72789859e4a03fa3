//go:build linux

package net

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// native is the byte order of netlink's headers.
var native = binary.NativeEndian

// conn is a route netlink socket on which one request is answered at a time.
type conn struct {
	fd  int
	seq uint32
}

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind route netlink: %w", err)
	}
	return &conn{fd: fd}, nil
}

func (c *conn) close() { unix.Close(c.fd) }

// message is one request before it has a sequence number: its header's type and flags, then its body.
type message struct {
	kind, flags uint16
	body        []byte
}

// call sends m and waits for the kernel's acknowledgement.
func (c *conn) call(m message) error {
	c.seq++
	if err := unix.Sendto(c.fd, m.encode(c.seq), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for buf := make([]byte, 64<<10); ; {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := acknowledged(buf[:n], c.seq); done {
			return err
		}
	}
}

func (m message) encode(seq uint32) []byte {
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(m.body))
	native.PutUint32(b[0:], uint32(unix.SizeofNlMsghdr+len(m.body)))
	native.PutUint16(b[4:], m.kind)
	native.PutUint16(b[6:], m.flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	native.PutUint32(b[8:], seq)
	return append(b, m.body...)
}

// acknowledged looks in b for the answer to request seq; done says that it was there, err what the kernel said.
func acknowledged(b []byte, seq uint32) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(native.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, errors.New("parse netlink answer: bad length")
		}
		if native.Uint16(b[4:]) == unix.NLMSG_ERROR && native.Uint32(b[8:]) == seq {
			if size < unix.SizeofNlMsghdr+4 {
				return true, errors.New("parse netlink answer: short error")
			}
			if code := int32(native.Uint32(b[unix.SizeofNlMsghdr:])); code != 0 {
				return true, unix.Errno(-code)
			}
			return true, nil
		}
		b = b[min(align(size), len(b)):]
	}
	return false, nil
}

func align(n int) int { return (n + 3) &^ 3 }

// attr appends one rtattr: length, type, value, padding.
func attr(b []byte, kind uint16, value []byte) []byte {
	b = native.AppendUint16(b, uint16(4+len(value)))
	b = native.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

// linkMessage sets a link up or down, and its MTU where that is not 0 (struct ifinfomsg).
func linkMessage(index int, up bool, mtu int) message {
	b := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(b[4:], uint32(index))
	if up {
		native.PutUint32(b[8:], unix.IFF_UP)
	}
	native.PutUint32(b[12:], unix.IFF_UP) // which flags are meant
	if mtu != 0 {
		b = attr(b, unix.IFLA_MTU, native.AppendUint32(nil, uint32(mtu)))
	}
	return message{kind: unix.RTM_NEWLINK, body: b}
}

// addressMessage adds (RTM_NEWADDR) or removes (RTM_DELADDR) an address (struct ifaddrmsg).
func addressMessage(kind uint16, index int, p netip.Prefix) message {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0] = family(p.Addr())
	b[1] = byte(p.Bits())
	native.PutUint32(b[4:], uint32(index))
	b = attr(b, unix.IFA_LOCAL, p.Addr().AsSlice())
	b = attr(b, unix.IFA_ADDRESS, p.Addr().AsSlice())
	m := message{kind: kind, body: b}
	if kind == unix.RTM_NEWADDR {
		m.flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return m
}

// routeMessage makes the default route (struct rtmsg).
func routeMessage(index int, gateway netip.Addr) message {
	b := make([]byte, unix.SizeofRtMsg)
	b[0] = family(gateway)
	b[4] = unix.RT_TABLE_MAIN
	b[5] = unix.RTPROT_BOOT
	b[6] = unix.RT_SCOPE_UNIVERSE
	b[7] = unix.RTN_UNICAST
	b = attr(b, unix.RTA_GATEWAY, gateway.AsSlice())
	b = attr(b, unix.RTA_OIF, native.AppendUint32(nil, uint32(index)))
	return message{kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body: b}
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
