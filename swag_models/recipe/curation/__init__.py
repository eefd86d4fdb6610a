"""Posts with hashtags -> vocabulary, labels and sampling factors."""
