"""Writing: where everything goes, known before a byte is written; one rename publishes it."""
