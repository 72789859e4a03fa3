package image

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	guestapi "github.com/coracle-engine/coracle/guest/api"
)

// WriteInitrd makes, at path, the initramfs of one boot: the image's own, and after it an archive with boot in it. It holds
// the boot's secret, so nobody else may read it, and it should be gone as soon as the guest has it.
func WriteInitrd(path, initrd string, boot guestapi.Boot) error {
	data, err := json.Marshal(boot)
	if err != nil {
		return err
	}
	r, err := os.Open(initrd)
	if err != nil {
		return fmt.Errorf("read initramfs: %w", err)
	}
	defer r.Close()
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove old initramfs: %w", err)
	}
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make initramfs: %w", err)
	}
	n, err := io.Copy(w, r)
	if err == nil {
		_, err = w.Write(bootArchive(n, data))
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
		return diskError("make initramfs", err)
	}
	return nil
}

// bootArchive is a cpio archive in the "newc" format (the kernel's driver-api/early-userspace/buffer-format.rst) with the
// guest's boot file, to be appended at offset. The kernel skips zeros between archives and wants each at a multiple of 4.
func bootArchive(offset int64, boot []byte) []byte {
	var b strings.Builder
	pad := func() {
		for (offset+int64(b.Len()))%4 != 0 {
			b.WriteByte(0)
		}
	}
	entry := func(ino int, name string, mode uint32, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		pad()
		b.Write(data)
		pad()
	}
	pad()
	file := strings.TrimPrefix(guestapi.BootPath, "/")
	const typeDir, typeFile = 0o040000, 0o100000
	entry(1, path.Dir(file), typeDir|0o700, nil)
	entry(2, file, typeFile|0o600, boot)
	entry(0, "TRAILER!!!", 0, nil)
	return []byte(b.String())
}
