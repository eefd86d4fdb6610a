"""Pre-training, fine-tuning and linear classifiers."""
