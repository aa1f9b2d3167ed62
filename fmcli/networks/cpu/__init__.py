"""Optional compiled CPU kernels for training. Without them PyTorch does the same work, more slowly."""
