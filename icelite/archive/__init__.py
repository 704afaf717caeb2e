"""Many files as one dataset of a repository, over years: what `icelite.virtualize` does.

`inputs` finds the files, `scan` opens them, `holdings` knows what the repository has already, `layouts` and `fit` say
whether and how files go together, and `ingestion` puts these in a row.
"""
