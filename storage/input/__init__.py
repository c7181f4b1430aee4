"""Input at rest: which files there are, which columns are read, tokens of any type, shards and partitions."""
