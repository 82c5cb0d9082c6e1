"""sterna runs quantised language models from GGUF files on your own machine."""
