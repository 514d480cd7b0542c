"""Third station: factors from weights and directions, and everything that changes with them."""
