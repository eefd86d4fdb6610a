"""Images and labels -> shards -> batches for training and evaluation."""
