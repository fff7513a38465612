"""Pictures and tables of results for people."""
