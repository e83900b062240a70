"""What a finetuning mix leaves out of the chats that it reads."""
