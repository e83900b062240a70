"""Where documents come from: files, tables and web archives in folders and object stores (`local`), `datasets` (`hub`), a dump
of Stack Exchange (`stackexchange`), the installed Python (`python`)."""
