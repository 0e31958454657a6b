"""One thin verb a function: options in, one library call, a record out."""
