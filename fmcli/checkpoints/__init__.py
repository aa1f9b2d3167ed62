"""The files of a run folder: checkpoints, packs, histories, and where each lies."""
