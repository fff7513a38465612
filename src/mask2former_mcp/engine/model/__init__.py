"""The Mask2Former network in plain PyTorch, with TAO's state-dict names."""
