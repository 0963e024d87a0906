"""The bundle: its schema, the writer that leaves the old one or the new one, and the reader that trusts nothing."""
