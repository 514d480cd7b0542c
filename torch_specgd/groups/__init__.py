"""What a parameter is: its route to Muon or AdamW, and the matrices that it consists of."""
