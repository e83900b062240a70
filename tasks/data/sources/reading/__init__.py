"""Reading files by format: JSON lines, Parquet and Arrow, plain text, HTML, WARC and WET."""
