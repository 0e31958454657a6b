"""Translation inside other software: SQL in DuckDB, and the embedders of LangChain, LlamaIndex and Haystack."""
