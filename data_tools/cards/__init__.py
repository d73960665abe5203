"""Cards of one's own data: checked against table and files before a conversion, or proposed from a table."""
