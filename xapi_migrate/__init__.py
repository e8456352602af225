"""Moves virtual machines between hosts, with their disks, while they run."""

__version__ = "0.1.0"
