"""What a prepared dataset holds: counted, shown, and made up from its counts."""
