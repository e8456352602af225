"""Storage: the SM interface for backends, and the services that stand between them and the disks."""
