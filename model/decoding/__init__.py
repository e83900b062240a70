"""Generation and log-likelihoods: decoder, KV cache, sampling."""
