"""What is done to a repository as a whole: expire, collect, compact, repack, verify, measure, move, bundle, export."""
