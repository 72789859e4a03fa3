package vmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/coracle-engine/coracle/vm"
)

// PortRun reads a program's words (a JSON array), runs it, and answers with a RunAnswer.
const PortRun = 2016

// Runner is a System on which programs can be run.
type Runner interface {
	// Run runs a program to its end and returns what it printed.
	Run(ctx context.Context, words []string) (string, error)
}

// RunAnswer is what came of a program.
type RunAnswer struct {
	Output string `json:"output"`
	Err    string `json:"err"`
}

// run serves PortRun.
func (g *guest) run(ctx context.Context, c net.Conn) {
	var words []string
	if err := json.NewDecoder(c).Decode(&words); err != nil {
		return
	}
	var a RunAnswer
	err := fmt.Errorf("run %q: %w", words, errors.ErrUnsupported)
	if r, ok := g.sys.(Runner); ok && len(words) > 0 {
		a.Output, err = r.Run(ctx, words)
	}
	if err != nil {
		a.Err = err.Error()
	}
	json.NewEncoder(c).Encode(a)
}

// AskRun has the guest of m run a program and returns what that printed.
func AskRun(ctx context.Context, m vm.Machine, words ...string) (string, error) {
	c, err := m.Dial(ctx, PortRun)
	if err != nil {
		return "", err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := json.NewEncoder(c).Encode(words); err != nil {
		return "", err
	}
	var a RunAnswer
	if err := json.NewDecoder(c).Decode(&a); err != nil {
		return "", err
	}
	if a.Err != "" {
		return a.Output, errors.New(a.Err)
	}
	return a.Output, nil
}
