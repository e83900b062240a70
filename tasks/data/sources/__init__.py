"""Where documents come from: files and object stores (`local`), `datasets` (`hub`), the installed Python
(`python`)."""
