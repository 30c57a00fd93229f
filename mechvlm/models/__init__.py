"""Models: the hooked VLM, its families, and checkpoints made for ground truth."""
