"""Labelled images -> packed shards -> batches for training and evaluation."""
