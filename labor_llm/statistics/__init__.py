"""Estimates, their errors and what may be told of them; knows no model and no file."""
