"""Evaluation of backbones: accuracy, probes of features, zero-shot classification, and bias."""
