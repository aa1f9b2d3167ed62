"""Optional compiled kernels for the CPU. PyTorch does the same work where they are missing."""
