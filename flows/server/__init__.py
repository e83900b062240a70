"""The dashboard's server: Prefect's application behind a guard, and what it sends out."""
