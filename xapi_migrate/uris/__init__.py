"""The migration URIs: the receiver's resource tree and the sender's client for it."""
