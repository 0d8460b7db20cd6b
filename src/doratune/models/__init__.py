"""Loading a base model and its tokenizer by name, folder, hub id or GGUF file, and identifying it."""
