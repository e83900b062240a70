"""The passes of deduplication: whole documents (`documents`), similar ones (`near`), paragraphs and n-grams (`pieces`,
`seen`), and the writing of what stays (`remove`)."""
