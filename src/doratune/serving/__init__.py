"""What comes after training: merging, converting and exporting an adapter, and checking the result."""
