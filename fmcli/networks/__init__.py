"""Build networks, train them in bfloat16, and run them over images.

- `tracing`: layers of a recipe's networks with their shapes and costs, without torch
- `build`: traced layers to network, with initial weights (`initialization`) and L2 gradients
- `blocks`: residual layers and squeeze-excite; `backbone`: networks of torchvision; `dropout`: layers that draw
- `bf16`: bfloat16 twin of a network, for training
- `batch_norm`: new batch norm statistics after averaging weights
- `folding`: batch norm folded into weights
- `inference`: faster network for prediction; logits of images, with test-time augmentation
- `cpu/`: optional compiled kernels for training on a CPU. `loading` compiles `kernels`; `pooling` and `strided` are the
  layers that use them
"""
