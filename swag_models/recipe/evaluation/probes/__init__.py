"""k-nearest-neighbour and linear probes on frozen features."""
