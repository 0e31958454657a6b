"""The command line: one function per verb, each with one library call and one record."""
