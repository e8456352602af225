"""The configuration of one daemon. The comments are the manual; `--show-config` prints the values."""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen
class MigrationTimes:
    """All in seconds."""

    # How often the sender sends HEAD while a migration is under way.
    heartbeat_interval: float = 30.0
    # Without a sign of life for half of this the sender tries the other URIs, after all of it it rolls back. The
    # receiver aborts after all of it. The sender also waits this long for the answer to `done`.
    heartbeat_lost: float = 90.0
    # How long the sender waits for one URI to answer HEAD in step 1.5, and GET control when it is in doubt.
    connect: float = 10.0
    # How long the sender waits for the answer to other requests; to PUT memory from the end of the stream on.
    request: float = 60.0
    # How long an offer lives if no PUT metadata comes.
    offer: float = 600.0
    # How often the sender asks for the state of the copies (3.6), more often while they have only begun, and tells the
    # task.
    poll: float = 0.5
    # How long a copy may get no nearer to its end because the guest writes to its disk faster than it is copied.
    falling_behind: float = 20.0
    # How long a running guest's memory may be sent without an end in sight because it changes faster than it is sent.
    final_suspend: float = 60.0
    # How often a sender in doubt asks what was decided, for as long as it takes.
    ask: float = 5.0
    # A copy that is not idle and has not moved for this long has a dead copier: it is killed and replaced. The guest's
    # writes wait for it until then.
    stall: float = 10.0
    # At the switch-over, while the guest stands still: how long draining its disk, and finishing its copy, may each
    # take before the copier is killed. Better shorter than heartbeat_lost, which ends the migration.
    guard: float = 10.0
    # After this long without an answer (iSCSI NOP) the target gives up the session of a sender's copier: whole seconds,
    # 3 or more. A new copier starts 3 seconds later at the soonest, so that no write of the old one overtakes its own.
    iscsi_silence: int = 9
    # After this long without an acknowledgement the connection that memory is sent on is broken, and the migration
    # fails: whole seconds, 2 or more. Linux counts a host that acknowledges but reads nothing at all as silent too.
    memory_silence: int = 10


@attrs.frozen
class Config:
    """One daemon."""

    # Where everything of this daemon lives: database, journal, sockets, consoles, certificates.
    state_dir: Path
    # Twisted endpoint strings that the API and the migration URIs are served on.
    # A "tls:" prefix serves https with this host's own certificate: tls:8443:interface=127.0.0.1
    listen: tuple[str, ...] = ("tcp:8080:interface=127.0.0.1",)
    # Path of a unix socket that the API is served on too; empty: none. Who may open it may log in without a password.
    # The XenAPI library's xapi_local() and Ansible with the host name localhost look at /var/lib/xcp/xapi.
    api_socket: str = ""
    # Who may open api_socket: 0600 the daemon's user only, 0660 its group too.
    api_socket_mode: str = "0600"
    # The toolstack beside which this daemon works: https://HOST[:PORT], http://HOST[:PORT] or unix:/PATH. Everything
    # that is not ours is passed through to it; log-ins, sessions, VMs and storage are its own. Empty: none, this daemon
    # is the toolstack. "#sha256=" and the certificate's SHA-256 behind an https URL pins the certificate. A unix socket
    # lets everybody in as root, so it is passed through to for api_socket only, never for the network.
    upstream: str = ""
    # PEM file of the authorities that vouch for an upstream without a fingerprint; empty: the system's.
    upstream_authorities: str = ""
    # How many connections to the upstream may be open at once. Waiting calls (event.from, event.next) have half of them
    # at most, imports, exports and consoles a quarter. Who finds none free waits for 20 seconds.
    upstream_connections: int = 400
    # Seconds for which an import or export through this daemon may stand still, and either side may take nothing of
    # what the other has sent; then it is cut. Consoles and other tunnels may be silent for as long as they like.
    upstream_idle: float = 300.0
    # Path of a unix socket in xapi's folder of plugins, /var/lib/xcp/plugin/NAME, beside an upstream: what xapi passes
    # on of /services/plugin/NAME is answered there; empty: none.
    plugin_socket: str = ""
    # SQLAlchemy URL of the records; empty: an SQLite file in state_dir, and the host is alone. sqlite:////PATH for the
    # hosts of one machine, postgresql://USER@HOST/NAME for many.
    database: str = ""
    # Hosts with the same database are one pool. So often, in seconds, a member looks into it, and tells the others that
    # it is alive; they also tell each other when they have written something.
    member_interval: float = 2.0
    # A member that has not answered for so many seconds is taken for dead by the others.
    member_lost: float = 15.0
    # File of user names and password hashes; empty: state_dir/users.
    users: str = ""
    # Who may log in, and thereby do everything: file:PATH such a file; unix:NAMES accounts of this machine (root alone
    # if none is named); the kind of another plug-in of twisted.cred with its argument. Each is tried in turn; empty:
    # the file of users alone.
    auth: tuple[str, ...] = ()
    # Hypervisor: qemu, or xen in the dom0 of a Xen host, by libxl.
    domains: str = "qemu"
    # On Xen: file of the kernel that a new domain (PVH) boots. By default GRUB, which finds the VM's own on its disk.
    xen_kernel: str = "/usr/lib/grub-xen/grub-i386-xen_pvh.bin"
    # On Xen: file of that kernel's initial memory disk; empty: none.
    xen_ramdisk: str = ""
    # On Xen: that kernel's command line.
    xen_arguments: str = ""
    # On Xen: how domains see the time stamp counter, as in xl.cfg: default, always_emulate, native, native_paravirt.
    xen_tsc_mode: str = "default"
    # QEMU's accelerators in order of preference; the first that it can open is used. "kvm, tcg" on a host with KVM.
    accelerators: tuple[str, ...] = ("tcg",)
    # What becomes of a VIF whose network is on a bridge that this host has not, or may not use: refuse, so that the VM
    # does not start here and is not received; disconnect, so that it runs with an interface that leads nowhere.
    without_bridge: str = "refuse"
    # Addresses that URIs are offered on; empty: those that `listen` names.
    addresses: tuple[str, ...] = ()
    # Schemes that URIs are offered with, in this order. http moves memory and disks in clear.
    schemes: tuple[str, ...] = ("https",)
    # A host that offers https takes disks over NBD with TLS, and refuses those of backends that cannot encrypt. With
    # this it takes them over iSCSI, faster and in clear: for a storage network that is trusted.
    insecure_storage: bool = False
    # Networks that a sender never connects to, whatever URIs a client hands in: link-local and multicast ones, and
    # those that mean no host. Add what only administrators should reach; where every receiver is another machine,
    # loopback too: "127.0.0.0/8" and "::1/128". A list replaces this one, so begin with what is in it.
    denied_networks: tuple[str, ...] = (
        "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/128", "fe80::/10", "ff00::/8",
    )  # fmt: skip
    # PEM file of this host's certificate, its chain behind it; empty: its own, made at the first start.
    certificate: str = ""
    # PEM file of the certificate's key.
    private_key: str = ""
    # PEM file of the authorities that vouch for https URIs without a fingerprint; empty: the system's.
    authorities: str = ""
    # What the server says of its brand and versions, for clients that insist on theirs: default, xencenter-2023,
    # xencenter-8.2, xencenter-7.0, xencenter-6.2, legacy-events.
    profile: str = "default"
    # TCP port of the iSCSI target; 0: a free one.
    iscsi_port: int = 3260
    # Largest VM metadata document accepted, of a migration or by PUT /import_metadata, in bytes.
    metadata_limit: int = 4 << 20
    # Largest XenAPI request accepted, in bytes.
    request_limit: int = 300 << 10
    # What becomes of a guest that writes faster than the link carries it away. true: past times.falling_behind its
    # writes to disks are slowed down more and more, past times.final_suspend it is stopped for as long as the rest of
    # its memory takes. false: past either the migration fails, and the guest runs on where it is.
    slow_guests: bool = True
    # How many connections may be open to all of `listen` together; at most a quarter of the files that the process may
    # have open (LimitNOFILE). The sockets of this host, api_socket and plugin_socket, may have as many of their own.
    connections: int = 1000
    # Of these, how many may be of who has shown neither a session nor a migration's capability. Where there is no room,
    # one that has been waited for longest is ended in favour of the next.
    connections_unknown: int = 200
    # The same from one address; of IPv6, from one /64.
    connections_of_address: int = 50
    # Seconds in which a request of who has shown nothing has to be here, headers and body.
    request_deadline: float = 60.0
    # How many VMs this host sends at once, those counted whose disks move to other SRs here; the others wait their
    # turn, first come first served. 0: all at once.
    sends_at_once: int = 3
    # How many VMs this host receives at once; the others wait at their senders. 0: all at once.
    receives_at_once: int = 3
    # For tests. VM.migrate then takes keep_source, which leaves the source's disks and record, and leave_paused, which
    # leaves the receiver's guest paused. The daemon stops itself at points of migrations that state_dir/stops names.
    test_options: bool = False
    times: MigrationTimes = attrs.field(factory=MigrationTimes)
