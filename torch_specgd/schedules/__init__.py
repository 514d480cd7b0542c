"""What changes over the steps: step sizes and momentum."""
