"""The catalog: the SQLite file that is the repository, one module for each table or pair of tables."""
