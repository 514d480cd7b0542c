"""Making and judging the engine's parts; nothing here runs in a training step."""
