"""A report about runs: one page, and its tables in Markdown."""
