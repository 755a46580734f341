"""pubsub: see docs/architecture.md."""
