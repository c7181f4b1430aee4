"""Output at rest: its layout, the commit of a shard, what is pending, orphans, manifests, verification, frames."""
