"""Checkpoints: what files hold, told from their headers, read into weight trees, and written."""
