"""Whether it helps: methods compared on the user's data, signs of lost plasticity."""
