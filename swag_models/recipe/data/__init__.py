"""Read labelled images, pack them into shards, and load batches for training and evaluation."""
