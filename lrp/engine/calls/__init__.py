"""What a call of a torch function says."""
