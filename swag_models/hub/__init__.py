"""Weight files from URLs, the Hugging Face Hub and local folders: fetched, verified and cached. Imports no torch."""
