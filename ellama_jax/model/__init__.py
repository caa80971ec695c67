"""The model: Llama in Flax NNX, its presets, its attention and its loss."""
