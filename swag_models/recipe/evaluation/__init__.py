"""How good a backbone is, measured as the paper and its successors do: from its classes, its features and its hashtags."""
