"""The report: values, words, figures and the page."""
