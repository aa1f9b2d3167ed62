"""Facts about the machine: devices, CPU cores and memory."""
