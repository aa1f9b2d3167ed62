"""Files on disk: atomic writes, bounded reads, and locks between processes."""
