"""Output at rest: layout, the commit of a shard, what is pending, orphans, manifests, verification, frames, errors."""
