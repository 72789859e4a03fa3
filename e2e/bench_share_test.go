//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkShare measures files as a container sees them: in a directory of the host's (-v DIR:/d) beside a volume, which is on
// the machine's own disk, in one machine, in turns. Figures are medians; a ratio is the share's time to the volume's. What is
// not called warm begins with an empty cache in the guest; dropping it takes a privileged container. (vm/qemu has the
// comparison with virtiofsd.)
func BenchmarkShare(b *testing.B) {
	needVM(b)
	rounds, files, tree, mib := 3, 10_000, 50_000, 256
	if testing.Short() {
		rounds, files, tree, mib = 1, 500, 2_500, 16
	}
	u := newUser(b)
	u.ok(b, "coracle", "start")
	u.toolboxImage(b)
	stores := map[string]string{"share": u.dir(b, "bench"), "volume": "bench"}
	plant(b, filepath.Join(stores["share"], "tree"), tree)
	u.docker(b, "run", "--rm", "-v", "bench:/d", "toolbox", "plant", "/d/tree", strconv.Itoa(tree))
	took := map[string]map[string][]float64{"share": {}, "volume": {}} // by store and measure: ns a piece
	for range rounds {
		for name, store := range stores {
			for _, verb := range [][]string{{"small", "/d", strconv.Itoa(files)}, {"walk", "/d/tree"}, {"seq", "/d", strconv.Itoa(mib)}} {
				out := u.docker(b, append([]string{"run", "--rm", "--privileged", "-v", store + ":/d", "toolbox"}, verb...)...)
				b.Logf("%s, %s: %s", name, verb, strings.ReplaceAll(out, "\n", ", "))
				for line := range strings.Lines(out) {
					var measure string
					var ns float64
					if n, _ := fmt.Sscan(line, &measure, &ns); n == 2 {
						took[name][measure] = append(took[name][measure], ns)
					}
				}
			}
		}
	}
	for _, measure := range []string{"create", "stat", "stat-warm", "read", "read-warm", "unlink", "walk", "walk-warm", "write", "seq-read", "seq-read-warm"} {
		b.Run(measure, func(b *testing.B) { // it is measured above: b.N counts nothing
			share, volume := median(took["share"][measure]), median(took["volume"][measure])
			b.ReportMetric(share/1e3, "share-µs")
			b.ReportMetric(volume/1e3, "volume-µs")
			b.ReportMetric(share/volume, "ratio")
			b.ReportMetric(load(), "load")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func median(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// load is the average of the last minute, 0 where the system does not tell.
func load() float64 {
	var load float64
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(b), &load)
	}
	return load
}

// plant makes on the host what the toolbox's verb of this name makes: n small files in directories of 50 each.
func plant(b *testing.B, dir string, n int) {
	b.Helper()
	for i := range n {
		in := filepath.Join(dir, strconv.Itoa(i/50))
		if i%50 == 0 {
			if err := os.MkdirAll(in, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(in, "file-"+strconv.Itoa(i)), []byte("planted\n"), 0o644); err != nil {
			b.Fatal(err)
		}
	}
}
