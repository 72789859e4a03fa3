package kernel

// Class says when the guest loads a module. The strongest of those that need it is a module's class.
type Class int

// The classes, strongest first.
const (
	Root   Class = iota // in the initramfs: the root can't be found or mounted without it
	Vsock               // in the initramfs: the host can't be reached without it
	Boot                // loaded from the root, beside the services' own start
	Late                // loaded when the engine has answered: nothing of ours waits for it, but containers can't ask for it
	Demand              // loaded when the kernel or a program asks
)

func (c Class) String() string { return [...]string{"root", "vsock", "boot", "late", "demand"}[c] }

// want is a group of modules and why a container host has it. What they depend on comes along by itself. A module that is
// built into the kernel needs no loading; one that is neither built in nor a module is an error, unless only names the one
// architecture that has it.
type want struct {
	class Class
	names string // separated by spaces
	why   string
	only  string
}

// wanted is everything that the guest's kernel can do beyond what is built into it. Not here, on purpose: 9p (QEMU's server
// has had guest escapes, and Debian's kernel has it not), btrfs and zfs (one data disk, ext4), drivers of real hardware.
var wanted = []want{
	{class: Root, names: "virtio_pci virtio_blk", why: "the disks"},
	{class: Root, names: "erofs", why: "the root's file system"},
	{class: Vsock, names: "vsock vmw_vsock_virtio_transport", why: "every word between host and guest"},

	{class: Boot, names: "ext4", why: "the data disk's file system"},
	{class: Boot, names: "virtio_net", why: "the link to the outside"},
	{class: Boot, names: "virtiofs", why: "the host's directories"},
	{class: Boot, names: "virtio_rng", why: "entropy from the host, where the processor has none"},
	{class: Boot, names: "virtio_balloon", why: "memory that containers freed goes back to the host"},
	{class: Boot, names: "overlay", why: "containerd's overlayfs snapshotter asks at its start"},
	{class: Boot, names: "bridge br_netfilter veth", why: "docker0, its filtering, and every container's link"},
	{class: Boot, names: "nf_tables nft_chain_nat nft_ct nft_nat nft_masq nft_fib_ipv4 nft_fib_ipv6",
		why: "dockerd's nftables backend puts these expressions in its first rules"},
	{class: Boot, names: "nf_conntrack nf_conntrack_netlink nf_nat", why: "dockerd's rules follow connections, and it flushes them by netlink"},

	{class: Boot, names: "xfrm_user", why: "dockerd opens a socket of its at its start, for encrypted overlay networks"},

	{class: Late, names: "ip_tables ip6_tables", why: "iptables-legacy in a container can't load these itself; the tables come on demand"},
	{class: Late, names: "fuse tun binfmt_misc", why: "device files and file systems that containers expect to find"},

	{class: Demand, names: "nft_compat nft_fib_inet nft_log nft_limit nft_quota nft_queue nft_redir nft_reject nft_reject_inet nft_reject_ipv4 " +
		"nft_reject_ipv6 nft_hash nft_numgen nft_tproxy nft_socket nft_connlimit nft_flow_offload nft_synproxy nft_fwd_netdev " +
		"nft_dup_ipv4 nft_dup_ipv6 nft_fib_netdev nft_xfrm nft_tunnel nft_reject_bridge nft_meta_bridge",
		why: "rules of containers that run nft or iptables-nft: Kubernetes, VPNs, Docker in Docker"},
	{class: Demand, names: "iptable_filter iptable_nat iptable_mangle iptable_raw ip6table_filter ip6table_nat ip6table_mangle " +
		"ip6table_raw arp_tables arptable_filter ebtables ebtable_filter ebtable_nat",
		why: "the legacy tables, for images that still bring iptables-legacy"},
	{class: Demand, names: "xt_addrtype xt_comment xt_conntrack xt_mark xt_connmark xt_nat xt_MASQUERADE xt_REDIRECT xt_tcpudp xt_set",
		why: "dockerd's iptables backend and kube-proxy use these in every rule set"},
	{class: Demand, names: "ipt_REJECT ip6t_REJECT xt_LOG xt_NFLOG nfnetlink_log nf_log_syslog xt_limit xt_hashlimit xt_connlimit " +
		"xt_statistic xt_recent xt_multiport xt_iprange xt_physdev xt_owner xt_state xt_string xt_time xt_u32 xt_bpf xt_policy " +
		"xt_pkttype xt_mac xt_length xt_dscp xt_DSCP xt_hl xt_HL xt_helper xt_connbytes xt_cgroup xt_esp xt_sctp xt_socket " +
		"xt_NFQUEUE nfnetlink_queue xt_CT xt_TPROXY xt_TCPMSS xt_tcpmss xt_TRACE xt_CLASSIFY xt_CHECKSUM xt_NETMAP xt_TEE " +
		"ipt_rpfilter ip6t_rpfilter ipt_SYNPROXY ip6t_SYNPROXY xt_quota xt_nfacct xt_ipvs xt_cpu xt_devgroup xt_realm",
		why: "the matches and targets that container networks (Calico, Cilium, Istio, kube-router) and users write"},
	{class: Demand, names: "ip_set ip_set_hash_ip ip_set_hash_net ip_set_hash_ipport ip_set_hash_ipportip ip_set_hash_ipportnet " +
		"ip_set_hash_netport ip_set_hash_netnet ip_set_hash_netiface ip_set_hash_ipmark ip_set_hash_mac ip_set_bitmap_ip ip_set_bitmap_port ip_set_list_set",
		why: "kube-proxy's IPVS mode and Kubernetes' network policies keep addresses in sets"},
	{class: Demand, names: "ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_sh ip_vs_dh ip_vs_sed ip_vs_nq ip_vs_mh",
		why: "Swarm's routing mesh and kube-proxy's IPVS mode balance with these"},
	{class: Demand, names: "vxlan geneve ipip ip_gre ip6_tunnel sit", why: "overlay networks of Swarm and Kubernetes: between machines, but also on one"},
	{class: Demand, names: "macvlan ipvlan dummy 8021q macvtap ifb", why: "Docker's macvlan and ipvlan drivers, with VLANs beneath; ifb and dummy for test beds"},
	{class: Demand, names: "wireguard", why: "VPN containers, and encrypted overlays of Calico, Cilium and Flannel"},
	{class: Demand, names: "xfrm_interface esp4 esp6 ah4 ah6 seqiv echainiv gcm ccm authenc cmac", why: "IPsec: Swarm's encrypted overlays and VPN containers"},
	{class: Demand, names: "sch_ingress sch_htb sch_tbf sch_netem sch_fq sch_prio sch_sfq cls_u32 cls_fw cls_bpf cls_matchall cls_flower " +
		"act_mirred act_police act_gact act_bpf", why: "traffic control: bandwidth limits of Kubernetes, chaos tests"},
	{class: Demand, names: "tls sctp tcp_bbr", why: "kernel TLS, SCTP ports (which Docker can publish), the congestion control that servers set"},
	{class: Demand, names: "inet_diag tcp_diag udp_diag raw_diag unix_diag netlink_diag af_packet_diag vsock_diag", why: "ss in a container or in the VM; guest/watch asks what listens"},
	{class: Demand, names: "hv_sock", why: "vsock where the host is Hyper-V"},
	{class: Demand, names: "vsock_loopback", why: "vsock within the guest, for tests of vsock programs"},
	{class: Demand, names: "loop squashfs isofs vfat nls_cp437 nls_ascii nls_utf8 nls_iso8859_1", why: "disk images that privileged containers mount"},
	{class: Demand, names: "nfs nfsv3 nfsv4 cifs", why: "volumes of Docker's local driver with type=nfs or type=cifs"},
	{class: Demand, names: "crc32c_intel", why: "checksums by the processor, where a file system asks for the fastest", only: "amd64"},
}
