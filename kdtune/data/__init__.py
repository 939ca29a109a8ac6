"""Image data sets: finding, splitting, decoding, augmenting and batching."""
