// Command build makes a guest image: a kernel, an initramfs, a read-only root, their manifest and their bill of materials.
// The rooms beside it do the work, in the order in which image.go calls them: images/debian fetches packages,
// images/kernel chooses modules, images/program builds the engine and our guest, images/rootfs lays out the trees,
// images/tree writes them, images/bom lists what is in them, images/manifest seals the whole. The same inputs give the
// same bytes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
)

func main() {
	var o options
	flag.StringVar(&o.arch, "arch", runtime.GOARCH, "architecture of the image: amd64 or arm64")
	flag.StringVar(&o.out, "out", "", "directory to make the image in (default build/image/ARCH)")
	flag.StringVar(&o.cache, "cache", "build/cache", "directory for packages and programs, kept from build to build")
	flag.StringVar(&o.guest, "guest", "", "take this coracle-guest instead of building it")
	flag.StringVar(&o.pack, "pack", "", "also write the image, compressed, as this .tar.zst: the download form")
	flag.BoolVar(&o.refresh, "refresh", false, "ask the archive for newer packages than the cache's")
	flag.BoolVar(&o.force, "force", false, "write the files even where nothing has changed")
	flag.Parse()
	if o.out == "" {
		o.out = filepath.Join("build", "image", o.arch)
	}
	unlock, err := lock(o.cache) // before signals are caught, so that they end a wait for it
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		err = build(ctx, o, os.Stdout)
		stop()
		unlock()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
