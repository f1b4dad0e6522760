"""Complete runs side by side: found, compared, drawn and written."""
