"""One page that compares several models."""
