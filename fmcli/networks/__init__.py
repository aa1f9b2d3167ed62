"""Build networks, train them in bfloat16, and run them over images.

- `build`: list of layers to network, with initial weights, dropout and L2 gradients
- `bf16`: bfloat16 twin of a network, for training
- `batch_norm`: new batch norm statistics after averaging weights
- `inference`: faster network for prediction; logits of images, with test-time augmentation
- `cpu/`: optional compiled kernels for training on a CPU. `loading` compiles `kernels`; `pooling` and `strided` are the
  layers that use them
"""
