"""Beside an existing toolstack: what is not ours is passed through to it (docs/upstream.md)."""
