"""Text to tokens and back: vocabulary, tokenizer files, chat template."""
