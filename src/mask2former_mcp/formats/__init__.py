"""Dataset formats on disk: readers and writers, pure (numpy, PIL)."""
