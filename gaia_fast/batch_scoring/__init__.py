"""Many images scored into a table, in chunks that are kept as they are done: what ends early goes on where it was."""
