"""Read and write the files of a run folder.

- `layout`: names and paths of the files and folders of a run
- `checkpoint`: a member's weights, with a header that describes them
- `history`: a member's metrics per epoch
- `pack`: an ensemble in one file
- `tensors`: safetensors files with a digest, which checkpoints, packs and training states use
"""
