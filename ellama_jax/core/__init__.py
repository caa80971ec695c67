"""What every part may use: meshes, processes, TPU slices, paths, trees, progress."""
