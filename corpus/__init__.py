"""Files on disk to arrays of ids: where music comes from, how it is prepared, and how training reads it."""
