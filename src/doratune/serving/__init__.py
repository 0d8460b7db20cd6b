"""After training: merging, converting and exporting adapters for serving."""
