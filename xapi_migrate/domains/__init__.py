"""Domains: the running thing behind a VM record, and the hypervisors that run it."""
