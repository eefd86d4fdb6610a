"""Weight files from URLs, the Hugging Face Hub and local folders, verified and cached.

Imports no torch.
"""
