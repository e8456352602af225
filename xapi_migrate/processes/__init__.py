"""Child processes that outlive the daemon, and QMP, the way to talk to QEMU's."""
