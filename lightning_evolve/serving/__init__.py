"""Serving a run: predictions, corrections and a page for people, on LitServe."""
