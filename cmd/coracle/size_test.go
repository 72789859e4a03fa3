package main

import (
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for _, tc := range []struct {
		text string
		want int64 // 0: an error
	}{
		{"4GiB", 4 << 30}, {"4G", 4 << 30}, {"4g", 4 << 30}, {"4 GB", 4 << 30}, {"4gb", 4 << 30}, {"4Gi", 0},
		{"512MiB", 512 << 20}, {"1.5g", 3 << 29}, {"1.0001GiB", 1 << 30}, {"2TiB", 2 << 40}, {"0.5T", 1 << 39},
		{"1m", 1 << 20}, {"1.999MiB", 1 << 20},
		{"", 0}, {"4", 0}, {"GiB", 0}, {"4KiB", 0}, {"4096", 0}, {"-4GiB", 0}, {"+4GiB", 0}, {"0GiB", 0}, {"0.1MiB", 0},
		{"1e3GiB", 0}, {"0x4GiB", 0}, {"4GiBB", 0}, {"4  GiB", 0}, {"NaNGiB", 0}, {"infG", 0}, {".5GiB", 0}, {"5.GiB", 0},
		{"1048576TiB", 0}, {"999999999999TiB", 0}, {"4GiB\n", 0}, {"４GiB", 0},
	} {
		got, err := parseSize(tc.text)
		if got != tc.want || (err == nil) != (tc.want != 0) {
			t.Errorf("parseSize(%q) = %d, %v: want %d", tc.text, got, err, tc.want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"4GiB", "1.5 g", "999999999999TB", "0.000001M", "4", "\x00G"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseSize(text)
		if err != nil {
			if n != 0 || len(err.Error()) > 100 {
				t.Errorf("parseSize(%q) = %d, %v", text, n, err)
			}
			return
		}
		if n < mebibyte || n%mebibyte != 0 || n >= 1<<60 {
			t.Errorf("parseSize(%q) = %d: want whole mebibytes within a machine's reach", text, n)
		}
		again, err := parseSize(formatSize(n))
		if err != nil && !strings.ContainsAny(formatSize(n), "PE") {
			t.Errorf("parseSize(%q), which formatSize made of %d: %v", formatSize(n), n, err)
		}
		if diff := again - n; err == nil && (diff > n/20 || diff < -n/20) {
			t.Errorf("%d is shown as %q, which is %d", n, formatSize(n), again)
		}
	})
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 bytes", 1023: "1023 bytes", 1024: "1 KiB", 4 << 30: "4 GiB", 3 << 29: "1.5 GiB", 1234567890: "1.1 GiB",
		1<<30 - 1: "1 GiB", 900 << 30: "900 GiB", 1000<<30 + 1<<29: "1000 GiB", 1 << 40: "1 TiB", 1<<63 - 1: "8 EiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %q: want %q", n, got, want)
		}
	}
}
