"""A typed request becomes a frozen Plan; no side effects."""
