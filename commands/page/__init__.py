"""The files of the report's page: its frame, its style and its script."""
