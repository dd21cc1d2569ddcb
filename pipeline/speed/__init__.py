"""How close training and sampling come to the bare network evaluations that they are made of."""
