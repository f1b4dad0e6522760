"""Predict careers with language models, beside every rival, with honest standard errors."""
