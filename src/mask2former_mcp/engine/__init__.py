"""The training engine: mask2former <action> -e spec.yaml."""
