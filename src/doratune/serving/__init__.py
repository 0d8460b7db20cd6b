"""After training: one plain model, a plain LoRA or a GGUF file out of a run, and what servers take."""
