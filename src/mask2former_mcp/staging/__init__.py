"""Bringing data to where a job can read it: archives and caches."""
