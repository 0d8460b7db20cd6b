"""From a name, a folder, a hub id or a GGUF file to a model and its tokenizer."""
