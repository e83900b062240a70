"""The recipe as configuration: its parts, its files and the rules between them."""
