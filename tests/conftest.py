"""Makes the modules of this folder (reference, gguf_image) importable from the tests below it."""
