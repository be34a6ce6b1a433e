"""Random networks, scored by every engine and held to an oracle of their own: `make fuzz N=5000`."""
