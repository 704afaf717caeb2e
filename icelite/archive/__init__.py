"""Many files as one dataset of a repository, over years: `virtualize`, `update`, `replace`, `drop`.

What a file is to a group is found by `inputs` (which files), `holdings` (what is there already), `scan` (each opened),
`layouts` and `fit` (whether they go together), `labels`, `extents`, `steps` and `placing` (where they belong), and kept
in `findings`. `ingestion` puts these in a row, with `continuation` where the group has steps, and `splice` where they
move; `records` keeps what references do not say.
"""
