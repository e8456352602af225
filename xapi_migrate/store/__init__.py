"""XenAPI's records."""
