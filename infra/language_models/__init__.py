"""Asking a language model behind an endpoint: protocol, client, rate limit."""
