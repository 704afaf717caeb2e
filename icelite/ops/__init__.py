"""What is done to a repository as a whole: expire, collect, compact, verify, measure."""
