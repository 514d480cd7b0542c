"""The user's forward passes -> what is known of each example."""
