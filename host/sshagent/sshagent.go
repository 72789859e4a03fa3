// Package sshagent is the host's end of the user's ssh agent: what containers ask at guest/api's SSHAgentSocket comes here as
// streams of the virtual machine's PortSSH, and is asked of the agent that the user's environment names (SSH_AUTH_SOCK).
//
// The guest is hostile, and a path is only a name: what is at the end of it may be swapped for another socket of the user's
// between a look and a connection (CVE-2026-79994). So the agent is looked at through the very descriptor that is connected
// to, and nothing passes but messages of the agent's protocol (draft-ietf-sshm-ssh-agent), one question and one answer at a
// time: no other server of the user's can be spoken to in them. What only harms the user is refused here: locking the agent,
// and adding keys of smart cards, which has an agent load a library by a path that the asker names (CVE-2023-38408).
package sshagent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
)

const (
	greetTime  = 10 * time.Second // for a peer to greet
	dialTime   = 5 * time.Second  // for the agent to take a connection
	maxConns   = 64               // at once
	maxMessage = 256 << 10        // bytes, as OpenSSH's agent has it
)

// Serve takes the guest's connections from l until it or ctx ends; it closes l and returns when all have ended. socket says
// where the user's agent is at the time of each connection, since it moves when the user logs in anew; empty is nowhere.
func Serve(ctx context.Context, l net.Listener, secret []byte, socket func() string, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("accept for the ssh agent: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			log.Warn("too many connections to the ssh agent at once", "limit", maxConns)
			conn.Close()
			continue
		}
		conns.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := serve(ctx, conn, secret, socket()); err != nil && ctx.Err() == nil {
				log.Warn("connection to the ssh agent", "err", err)
			}
		})
	}
}

func serve(ctx context.Context, conn net.Conn, secret []byte, socket string) error {
	err := conn.SetDeadline(time.Now().Add(greetTime))
	if err == nil {
		err = api.CheckGreeting(conn, secret)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return err
	}
	agent, err := dial(ctx, socket)
	if err != nil {
		refuse(conn)
		return err
	}
	defer agent.Close()
	defer context.AfterFunc(ctx, func() { agent.Close() })()
	return carry(conn, agent)
}

// dial connects to the user's agent.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	if socket == "" {
		return nil, errors.New("reach the ssh agent: this user has none (SSH_AUTH_SOCK is not set)")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := connect(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("reach the ssh agent at %s: %w", socket, err)
	}
	return conn, nil
}

// failure is the agent's answer to what it does not do (SSH_AGENT_FAILURE).
var failure = []byte{0, 0, 0, 1, 5}

// refuse answers one question, so that who asked hears of a refusal and not of a broken connection.
func refuse(conn net.Conn) {
	if conn.SetDeadline(time.Now().Add(greetTime)) != nil {
		return
	}
	if _, err := read(conn); err == nil {
		_, _ = conn.Write(failure)
	}
}

// passes are the questions that the agent hears (section 7.1 of the draft).
var passes = map[byte]bool{
	11: true, // SSH_AGENTC_REQUEST_IDENTITIES
	13: true, // SSH_AGENTC_SIGN_REQUEST
	17: true, // SSH_AGENTC_ADD_IDENTITY
	18: true, // SSH_AGENTC_REMOVE_IDENTITY
	19: true, // SSH_AGENTC_REMOVE_ALL_IDENTITIES
	25: true, // SSH_AGENTC_ADD_ID_CONSTRAINED
	27: true, // SSH_AGENTC_EXTENSION
}

// carry asks agent what conn asks, until conn has no more questions.
func carry(conn, agent io.ReadWriter) error {
	for {
		question, err := read(conn)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a question to the ssh agent: %w", err)
		}
		answer := failure
		if passes[question[4]] {
			if _, err := agent.Write(question); err != nil {
				return fmt.Errorf("ask the ssh agent: %w", err)
			}
			if answer, err = read(agent); err != nil {
				return fmt.Errorf("read the ssh agent's answer: %w", err)
			}
		}
		if _, err := conn.Write(answer); err != nil {
			return fmt.Errorf("pass on the ssh agent's answer: %w", err)
		}
	}
}

// read reads one message, its length of 32 bits and its type included. io.EOF is the end between two.
func read(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxMessage {
		return nil, fmt.Errorf("a message of %d bytes is none of the ssh agent's", n)
	}
	message := make([]byte, 4+n)
	copy(message, head[:])
	if _, err := io.ReadFull(r, message[4:]); err != nil {
		return nil, fmt.Errorf("message cut short: %w", io.ErrUnexpectedEOF)
	}
	return message, nil
}
