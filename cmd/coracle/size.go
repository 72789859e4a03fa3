package main

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// size is a number of bytes as a flag: whole mebibytes, 0 where the flag is not given.
type size int64

const mebibyte = 1 << 20

var sizeRE = regexp.MustCompile(`^([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([MGT])(?:i?B)?$`)

// parseSize reads sizes as people write them: "512MiB", "4g", "1.5 GB". Units are powers of 1024, as everywhere in Docker,
// and must be given; what a fraction leaves of a mebibyte is dropped.
func parseSize(text string) (int64, error) {
	m := sizeRE.FindStringSubmatch(strings.NewReplacer("m", "M", "g", "G", "t", "T", "b", "B", "I", "i").Replace(text))
	if m == nil {
		return 0, fmt.Errorf("want a size with its unit, such as 512MiB or 4GiB")
	}
	value, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0, err
	}
	mib := math.Floor(value * map[string]float64{"M": 1, "G": 1 << 10, "T": 1 << 20}[m[2]])
	if mib < 1 {
		return 0, fmt.Errorf("want at least 1MiB")
	}
	if mib >= 1<<40 {
		return 0, fmt.Errorf("want less than 1048576TiB")
	}
	return int64(mib) * mebibyte, nil
}

// Set, String and Type make a size a flag.
func (s *size) Set(text string) error {
	n, err := parseSize(text)
	if err == nil {
		*s = size(n)
	}
	return err
}

// String is empty where the flag is not given, so that help shows no default.
func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return formatSize(int64(*s))
}

// Type is what help shows for the value.
func (s *size) Type() string { return "size" }

// formatSize is n bytes for people, in at most 4 digits: "4 GiB", "1.2 GiB", "17 KiB".
func formatSize(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v, i := float64(n), 0
	for ; v >= 1023.95 && i < len(units)-1; i++ {
		v /= 1024
	}
	digits := 1
	if v == math.Trunc(v) || v >= 100 {
		digits = 0
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', digits, 64), ".0") + " " + units[i]
}
