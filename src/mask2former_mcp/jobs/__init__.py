"""Durable jobs: store, supervisor, status reader, device leases."""
