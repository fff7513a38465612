"""The experiment spec: every field declared once, and the views made from it."""
