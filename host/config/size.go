package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var units = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// FormatSize writes bytes in the largest unit that divides them.
func FormatSize(bytes int64) string {
	for _, u := range units {
		if bytes != 0 && bytes%u.bytes == 0 {
			return strconv.FormatInt(bytes/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(bytes, 10)
}

// ParseSize reads a number of bytes, or of a unit: "4GiB", "512MiB", "1.5G", "1073741824". All units are powers of 1024; what a
// fraction leaves of a MiB is dropped.
func ParseSize(s string) (int64, error) {
	digits, factor := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		for _, suffix := range []string{u.name, u.name[:1] + "B", u.name[:1]} {
			if n := len(digits) - len(suffix); factor == 1 && n > 0 && strings.EqualFold(digits[n:], suffix) {
				digits, factor = strings.TrimSpace(digits[:n]), u.bytes
			}
		}
	}
	whole, fraction, _ := strings.Cut(digits, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	part, perr := strconv.ParseInt("0"+fraction, 10, 64)
	if err != nil || perr != nil || n < 0 || n > math.MaxInt64/factor || len(fraction) > 6 || whole != digits && (fraction == "" || factor < mib) {
		return 0, fmt.Errorf("%q is no size: want a number of bytes, or one with KiB, MiB, GiB or TiB", s)
	}
	part = part * (factor / mib) / int64(math.Pow10(len(fraction))) * mib
	if part > math.MaxInt64-n*factor {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return n*factor + part, nil
}

// size is a number of bytes as a person writes it.
type size int64

func (s size) MarshalYAML() (any, error) { return FormatSize(int64(s)), nil }

func (s *size) UnmarshalYAML(n *yaml.Node) error {
	v, err := ParseSize(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: %q is no size: want a number of bytes, or one with KiB, MiB, GiB or TiB", n.Line, n.Value)
	}
	*s = size(v)
	return nil
}
