"""Publish a model to the Hugging Face Hub: its files, its card and the upload."""
