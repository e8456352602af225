"""Guests for tests and demonstrations: small programs that count, and notice when something was lost."""
