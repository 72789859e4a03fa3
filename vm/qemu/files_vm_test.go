//go:build linux

package qemu

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// BenchmarkFiles measures the file-system device with files that are in memory, so that what it costs is the device, the
// guest's kernel and its caches: the attributes of an open file, which the guest asks for each time; and a file of 64 MiB,
// read from its beginning to its end by one reader, and by four at once, each a file of its own.
func BenchmarkFiles(b *testing.B) {
	const size, readers = 64 << 20, 4
	contents := make([]byte, size)
	files := vmtest.NewFiles(map[string][]byte{"0": contents, "1": contents, "2": contents, "3": contents, "empty": nil})
	dir := imageDir(b, runtime.GOARCH)
	m := bootGuest(b, dir, testInitrd(b, dir, runtime.GOARCH), func(cfg *vm.Config) {
		cfg.FileSystem, cfg.FileSystemTag = files, "bench"
	})
	ask := func(b *testing.B, name string, stats int) vmtest.FileAnswer {
		a, err := vmtest.AskFile(b.Context(), m, vmtest.FileCall{Tag: "bench", Name: name, Stats: stats})
		if err != nil {
			b.Error(err)
		}
		return a
	}
	var stat, one, all []time.Duration
	for b.Loop() {
		stat = append(stat, ask(b, "empty", 1000).Stat)
		one = append(one, ask(b, "0", 0).Read)
		begin := time.Now()
		var wg sync.WaitGroup
		for i := range readers {
			wg.Go(func() { ask(b, string(rune('0'+i)), 0) })
		}
		wg.Wait()
		all = append(all, time.Since(begin))
	}
	median := func(ds []time.Duration) float64 {
		slices.Sort(ds)
		return ds[len(ds)/2].Seconds()
	}
	b.ReportMetric(median(stat)*1e6, "µs/stat")
	b.ReportMetric(size/1e6/median(one), "MB/s")
	b.ReportMetric(readers*size/1e6/median(all), "MB/s-by-4")
	b.ReportMetric(loadAverage(), "load")
	b.ReportMetric(0, "ns/op")
}
