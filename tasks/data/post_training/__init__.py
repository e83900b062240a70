"""Stages that read and clean the data of post-training: chats, prompts with verifiable answers, preference pairs."""
