"""Where documents come from: files, tables and web archives in folders and object stores (`local`), `datasets` (`hub`), the
installed Python (`python`)."""
