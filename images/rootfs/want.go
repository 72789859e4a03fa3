package rootfs

// take names files of one Debian package that the root needs. Globs are path.Match's, relative to the root; one that ends
// in /** means all below. Every glob must match something, so that a change in Debian is seen. Libraries are not listed:
// what the files are linked with comes along, and nothing else.
type take struct {
	pkg   string
	files string // separated by spaces
	why   string
}

var takes = []take{
	{"base-files", "usr/share/common-licenses/*", "the licence texts that packages' copyright files point to"},
	{"netbase", "etc/protocols etc/services", "names of protocols and ports in iptables' and nft's rules"},
	{"tzdata", "usr/share/zoneinfo/**", "time zones, for dockerd's --log times and for containers that mount them"},
	{"bash", "usr/bin/bash", "a root shell that people know"},
	{"busybox-static", "usr/bin/busybox", "the tools that the engine and a person at the shell expect; see applets"},
	{"e2fsprogs", "usr/sbin/mke2fs usr/sbin/mkfs.ext4 usr/sbin/e2fsck usr/sbin/fsck.ext4 usr/sbin/resize2fs usr/sbin/tune2fs etc/mke2fs.conf",
		"making, checking and growing the data disk"},
	{"git", "usr/bin/git usr/lib/git-core/git-remote-http usr/lib/git-core/git-remote-https usr/lib/git-core/git-submodule " +
		"usr/lib/git-core/git-sh-setup usr/lib/git-core/git-sh-i18n usr/share/git-core/templates/description usr/share/git-core/templates/info/exclude",
		"BuildKit's git source: init, fetch, checkout, submodules. No perl: none of these want it"},
	{"openssh-client", "usr/bin/ssh", "BuildKit's git source over ssh"},
	{"iptables", "usr/sbin/xtables-nft-multi usr/lib/*/xtables/*.so", "dockerd's iptables backend, for who sets it"},
	{"nftables", "usr/sbin/nft", "dockerd's nftables backend, the one that we use: it is ten times quicker at the start"},
	{"procps", "usr/bin/ps usr/bin/pgrep usr/bin/pkill", "docker top runs ps with options that busybox has not"},
	{"tini", "usr/bin/tini-static", "docker run --init"},
	{"xz-utils", "usr/bin/xz", "dockerd runs xz to unpack images' layers"},
	{"libc6", "usr/lib/*/libnss_dns.so.2 usr/lib/*/libnss_files.so.2", "names that old static programs resolve by glibc's plugins"},
	{"libgcc-s1", "usr/lib/*/libgcc_s.so.1", "glibc loads it by name when a thread ends"},
}

// Packages names what to ask the archive for; apt adds what they depend on.
func Packages() []string {
	out := []string{"ca-certificates"} // its certificates are joined by us
	for _, t := range takes {
		out = append(out, t.pkg)
	}
	return out
}

// skipped are dependencies that need no download: nothing that the root takes is linked with them. Prefixes.
var skipped = []string{
	"linux-base", "initramfs-tools", "linux-initramfs-tool", "dracut", "klibc", "libklibc", "udev", "systemd", "libsystemd-shared",
	"kmod", "cpio", "perl", "libperl", "liberror-perl", "git-man", "coreutils", "debconf", "debianutils", "mawk", "passwd",
	"adduser", "dpkg", "logsave", "mount", "openssl", "tar", "init-system-helpers", "libdb5.3", "libgdbm",
}

// links are the names by which the tools are called, each with its target.
var links = map[string]string{
	"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib",
	"usr/bin/docker-init":        "tini-static",
	"usr/sbin/iptables":          "xtables-nft-multi",
	"usr/sbin/iptables-save":     "xtables-nft-multi",
	"usr/sbin/iptables-restore":  "xtables-nft-multi",
	"usr/sbin/iptables-nft":      "xtables-nft-multi",
	"usr/sbin/ip6tables":         "xtables-nft-multi",
	"usr/sbin/ip6tables-save":    "xtables-nft-multi",
	"usr/sbin/ip6tables-restore": "xtables-nft-multi",
	"usr/sbin/ip6tables-nft":     "xtables-nft-multi",
	"usr/bin/docker-proxy":       "../lib/coracle/coracle-guest",
	"usr/sbin/modprobe":          "../lib/coracle/coracle-guest",
	"usr/sbin/init":              "../lib/coracle/coracle-guest",
	"usr/bin/unxz":               "xz",
	"etc/os-release":             "../usr/lib/os-release",
	"etc/mtab":                   "../proc/self/mounts",
	"etc/localtime":              "../usr/share/zoneinfo/Etc/UTC",
	"etc/resolv.conf":            "../run/resolv.conf",
	"etc/hostname":               "../run/hostname",
	"etc/hosts":                  "../run/hosts",
	"etc/machine-id":             "../run/machine-id",
	"etc/docker":                 "../run/docker-etc",
	"etc/containerd":             "../run/containerd-etc",
	"etc/cni":                    "../run/cni-etc",
}

// mountPoints are directories that the guest mounts something on, or that programs expect to be there.
var mountPoints = []string{"proc", "sys", "dev", "run", "tmp", "data", "var", "root", "mnt", "media", "srv", "opt", "home", "boot"}

// applets are busybox's tools by directory, where no package brings a better one.
var applets = map[string]string{
	"usr/bin": "[ ar awk base64 basename bunzip2 bzip2 bzcat cat chgrp chmod chown clear cmp cp cpio cut date dd df diff dirname " +
		"dmesg dos2unix du echo ed egrep env expand expr factor fallocate false fgrep find fold free getopt grep groups gunzip gzip " +
		"head hexdump hostid hostname id ionice ipcalc kill killall last less link ln logger logname ls lzcat lzma md5sum mkdir " +
		"mkfifo mknod mktemp more mount mv nc netstat nl nproc nslookup nsenter od paste patch pidof ping ping6 " +
		"printf pwd readlink realpath renice reset rev rm rmdir sed seq setsid sh sha1sum sha256sum sha512sum shred " +
		"sleep sort stat strings stty sync tac tail tar taskset tee telnet test time timeout top touch tr traceroute " +
		"true truncate tty uname uncompress uniq unix2dos unlink unshare unzip uptime usleep vi watch wc wget " +
		"which who whoami xargs xxd yes zcat [[ arch bc cal dc dnsdomainname install linux32 setpriv sha3sum " +
		"shuf start-stop-daemon su traceroute6 ts uudecode uuencode w",
	"usr/sbin": "arp arping blkdiscard findfs fsfreeze hwclock mkswap modinfo partprobe tc blockdev brctl chroot fdisk freeramdisk fstrim ifconfig insmod ip losetup lsmod " +
		"pivot_root rmmod route swapoff swapon switch_root sysctl umount",
}
