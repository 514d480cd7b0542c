"""A table and a selection -> a page that explains both, and whether random does as well."""
