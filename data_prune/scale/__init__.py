"""The same selection where the table is larger than memory: Parquet, Ray Data, ``datasets``."""
