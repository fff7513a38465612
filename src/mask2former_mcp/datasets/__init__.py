"""Dataset folders: references, data sources, checks, derived facts."""
